#pragma once
/// \file
/// The settings of a Hugging Face directory: config.json and generation_config.json as a
/// DecoderConfig. What transformers 4 and 5 write is read; a setting that would change the numbers
/// and is not known is refused.

#include <optional>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/nn/config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

struct HfModel {
  DecoderConfig config{};
  Family family = Family::kLlama;
  /// llama, mistral, qwen2, qwen3, gpt_neox, gpt2, opt, gemma, gemma2, gemma3_text
  std::string model_type;
  std::string architecture;          ///< The causal model of the type, as in `architectures`.
  std::optional<std::string> dtype;  ///< `float32`, ...: only counts where stored types differ.
};

/// Returns the model that a config.json describes. An absent setting has the default of the model
/// type's configuration class in transformers. The ids of the end and of padding are those of
/// generation_config.json if there is one, else config.json's; they may lie outside the vocabulary.
/// \param source             the file's name, for messages.
/// \param generation_config  null: the directory has none.
/// \throws ValueError  "SOURCE: setting 'NAME' must be ..., got ..." if a setting has a wrong type
///                     or value, or is not known; "SOURCE: ..." if it is no object.
PAPERLAB_API HfModel read_hf_config(const std::string& source, const Json& config,
                                    const Json* generation_config = nullptr);

/// The files of a directory besides its weights.
struct HfDirectory {
  std::string path;
  Json config;
  std::optional<Json> generation_config{};
  HfModel model;
  /// Paths of the tokenizer's files that are there: tokenizer.json, tokenizer_config.json,
  /// special_tokens_map.json, added_tokens.json, vocab.json, merges.txt, tokenizer.model,
  /// chat_template.jinja.
  std::vector<std::string> tokenizer_files{};
};

/// Reads config.json and, if it is there, generation_config.json; `model` is left alone.
/// \throws IoError     "FILE: ..." if the directory or config.json is missing or not readable.
/// \throws ValueError  as read_json().
PAPERLAB_API HfDirectory read_hf_files(const std::string& path);

/// As above, and the model of read_hf_config().
/// \throws IoError, ValueError  as read_hf_files() and read_hf_config().
PAPERLAB_API HfDirectory read_hf_directory(const std::string& path);

}  // namespace paperlab::nn
