#pragma once
// What describes a type of encoders: the table of its tensors' names, the defaults of its
// configuration class in transformers and a function that reads its settings. One file a type.

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "paperlab/nn/encoder_config.h"
#include "paperlab/nn/hf_settings.h"
#include "paperlab/nn/parameter_rows_internal.h"

namespace paperlab::nn {

/// Letters of shapes: V vocabulary, D width, F width of the feed-forward part, Q lanes of all
/// heads, P rows of the table of positions, T types of tokens, L labels, O outputs of the pooler, R
/// distances, G channels of a group and K width of the convolution, C Y X a patch, 1 one.
using EncoderRow = ParameterRow<EncoderConfig>;

/// What a type calls its sizes.
struct EncoderKeys {
  const char* width = "hidden_size";
  const char* layers = "num_hidden_layers";
  const char* heads = "num_attention_heads";
  const char* ffn = "intermediate_size";
  const char* activation = "hidden_act";
  const char* norm_eps = "layer_norm_eps";  // null: it has no such setting
};

struct EncoderType {
  using Read = void (*)(Settings& settings, EncoderConfig& config);

  const char* name;
  const char* classes;  // what the names of its classes begin with
  EncoderFamily family;
  std::span<const EncoderRow> rows;
  std::string_view root;  // what names begin with unless the model has no head
  Read read;              // all but the blocks, the vocabulary, the labels and the dtype
  EncoderKeys keys;
  std::int64_t vocab_size;  // 0: it reads pictures
  std::int64_t width;
  std::int64_t layers;
  std::int64_t heads;
  std::int64_t ffn;
  double norm_eps;
};

extern const EncoderType kBertType;
extern const EncoderType kRobertaType;
extern const EncoderType kDistilBertType;
extern const EncoderType kDebertaV2Type;
extern const EncoderType kVitType;

std::span<const EncoderType* const> encoder_types();
const EncoderType& type_of(EncoderFamily family);

namespace rows {

// Conditions that several tables have.
inline bool always(const EncoderConfig& /*c*/) { return true; }
inline bool has_types(const EncoderConfig& c) { return c.num_token_types > 0; }
inline bool has_pooler(const EncoderConfig& c) { return c.has_pooler; }
inline bool has_state_pooler(const EncoderConfig& c) {
  return c.has_pooler && c.output == EncoderOutput::kStates;
}
inline bool is_sequence(const EncoderConfig& c) { return c.output == EncoderOutput::kSequence; }
inline bool is_tokens(const EncoderConfig& c) { return c.output == EncoderOutput::kTokens; }
inline bool is_labels(const EncoderConfig& c) { return is_sequence(c) || is_tokens(c); }
inline bool is_vocabulary(const EncoderConfig& c) { return c.output == EncoderOutput::kVocabulary; }
inline bool is_untied(const EncoderConfig& c) { return is_vocabulary(c) && !c.block.has_tied_head; }

}  // namespace rows

/// max_position_embeddings, 512 if it is absent.
std::int64_t read_positions(Settings& settings);

/// The token whose row of the embedding gets no gradient; nothing: there is none.
/// \param absent  of files without the setting.
std::optional<std::int64_t> read_padding(Settings& settings, std::int64_t absent,
                                         std::int64_t vocab_size);

/// An integer >= 0.
std::int64_t read_count(Settings& settings, const char* key, std::int64_t absent);

/// Positions, token types and pooler of BERT, which RoBERTa shares.
void read_bert_form(Settings& settings, std::int64_t padding, EncoderConfig& config);

}  // namespace paperlab::nn
