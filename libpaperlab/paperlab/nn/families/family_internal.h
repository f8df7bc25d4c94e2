#pragma once
// What describes a family of decoders: the table of its tensors' names and, for each model type of
// transformers, defaults and a function that reads its settings. One file a family.

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "paperlab/nn/hf_settings.h"
#include "paperlab/nn/parameter_rows_internal.h"

namespace paperlab::nn {

using DecoderRow = ParameterRow<DecoderConfig>;

/// Letters of shapes: V vocabulary, W width of the embedding, D width of the blocks, P rows of the
/// table of positions, Q and K lanes of all query and key heads, H lanes of a head, A Q + 2 K, F
/// width of the feed-forward part.
struct NameTable {
  std::span<const DecoderRow> rows;
  std::string_view root;               // of specs_of_rows()
  bool (*fits)(const DecoderConfig&);  // whether the rows name all that such a decoder has
  const char* required;                // what else is not so, for a message
};

const NameTable& names_of(Family family);
extern const NameTable kLlamaNames;
extern const NameTable kGptNeoXNames;
extern const NameTable kGpt2Names;
extern const NameTable kOptNames;

/// A configuration class of transformers with its defaults.
struct ModelType {
  using Read = void (*)(Settings& settings, const ModelType& type, DecoderConfig& config);

  const char* name;
  const char* architecture;
  Family family;
  Read read;  // all but the head's tie, dtype and token ids
  std::int64_t vocab_size;
  std::int64_t hidden_size;
  std::int64_t intermediate_size;  // 0: 4 hidden_size, also for null
  std::int64_t num_layers;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;  // 0: as many as heads
  std::int64_t head_dim;      // 0: hidden_size / heads
  std::int64_t max_positions;
  bool has_tied_head = false;
  std::int64_t eos_token_id = -1;  // -1: none
  std::int64_t pad_token_id = -1;
};

std::span<const ModelType> llama_types();
std::span<const ModelType> gpt_neox_types();
std::span<const ModelType> gpt2_types();
std::span<const ModelType> opt_types();
std::span<const ModelType> gemma_types();

/// What a type calls its sizes.
struct SizeKeys {
  const char* hidden = "hidden_size";
  const char* ffn = "intermediate_size";
  const char* layers = "num_hidden_layers";
  const char* heads = "num_attention_heads";
  const char* positions = "max_position_embeddings";
};

/// Sizes and max_positions of a model whose heads all have keys of their own and share the width.
void read_sizes(Settings& settings, const ModelType& type, const SizeKeys& keys,
                DecoderConfig& config);

/// As above, of a model with num_key_value_heads and head_dim.
void read_grouped_sizes(Settings& settings, const ModelType& type, DecoderConfig& config);

/// RoPE, and the positions that it serves.
void read_rope(Settings& settings, const RopeForm& form, DecoderConfig& config);

/// What sliding_window says: 4096 if it is absent, 0 if it is null.
std::int64_t read_window(Settings& settings);

/// The windows of layers by layer_types, else by `has_window`; empty if none has one.
/// \param window       of layers that have one; 0: none may.
/// \param requirement  of layer_types, where one of its layers has a window and none may.
std::vector<std::int64_t> read_windows(Settings& settings, std::int64_t num_layers,
                                       std::int64_t window, const char* requirement,
                                       const std::function<bool(std::int64_t layer)>& has_window);

}  // namespace paperlab::nn
