#pragma once
/// \file
/// What an encoder is: blocks as a decoder's, whose tokens see each other both ways, what stands
/// before them and what is made of their states.

#include <cstdint>
#include <string>

#include "paperlab/nn/config.h"

namespace paperlab::nn {

/// The families of names.
enum class EncoderFamily : std::uint8_t { kBert, kRoberta, kDistilBert, kDebertaV2, kVit };

/// What is made of the states [B, T, E] after the last block.
enum class EncoderOutput : std::uint8_t {
  kStates,      ///< Nothing: the model without a head.
  kVocabulary,  ///< Logits [B, T, V] of each token (masked language models).
  kSequence,    ///< Logits [B, labels] of the first token, or of the mean of all.
  kTokens,      ///< Logits [B, T, labels] of each token.
};

/// Attention that also sees how far apart query and key are.
/// Source: He et al., arXiv:2006.03654, Sec. 3.1; buckets: arXiv:2111.09543 and its released code.
struct RelativeConfig {
  bool is_used = false;
  bool has_content_to_position = false;
  bool has_position_to_content = false;
  bool has_shared_projections = false;  ///< The block's own projections of queries and keys.
  bool has_norm = false;                ///< Of the embeddings of distances.
  std::int64_t span = 0;                ///< Distances -span..span-1 have embeddings.
  std::int64_t num_buckets = 0;   ///< Farther than half of it, distances share buckets; 0: no.
  std::int64_t max_distance = 0;  ///< The distance of the last bucket.
};

/// A convolution over tokens beside the first block; kernel_size 0: there is none.
struct TokenConvolution {
  std::int64_t kernel_size = 0;
  std::int64_t groups = 1;
  Activation activation = Activation::kTanh;
};

/// Pictures as tokens. Source: Dosovitskiy et al., arXiv:2010.11929.
struct PatchConfig {
  std::int64_t num_channels = 0;  ///< 0: the model reads tokens.
  std::int64_t image_height = 0;
  std::int64_t image_width = 0;
  std::int64_t height = 0;  ///< Of a patch.
  std::int64_t width = 0;
};

/// An encoder. `block` holds the sizes and forms of the blocks, the vocabulary and the ends; its
/// max_positions is the longest sequence.
struct EncoderConfig {
  EncoderFamily family = EncoderFamily::kBert;
  EncoderOutput output = EncoderOutput::kStates;
  DecoderConfig block{};
  bool is_norm_first = false;        ///< x + f(norm x), and a final norm; else norm(x + f(x)).
  std::int64_t num_positions = 0;    ///< Rows of the table of positions; 0: there is none.
  bool counts_from_padding = false;  ///< Positions number the tokens that are no padding, from
                                     ///< pad_token_id + 1 on; padding has position pad_token_id.
  std::int64_t num_token_types = 0;  ///< 0: types of tokens are not read.
  std::int64_t num_labels = 0;
  bool has_mean_pooling = false;  ///< Of pictures: no class token stands before the patches, and
                                  ///< labels are those of the mean of all states (kSequence).
  bool has_pooler = false;        ///< A dense layer on the first token.
  std::int64_t pooler_width = 0;  ///< Its outputs.
  Activation pooler_activation = Activation::kTanh;
  Activation head_activation = Activation::kGelu;  ///< Of the dense layer before a vocabulary.
  bool has_legacy_head = true;       ///< DeBERTa: the head's names, `cls` or `lm_predictions`.
  bool hides_states = false;         ///< States of hidden tokens are zeros at first (DeBERTa).
  std::int64_t attention_terms = 1;  ///< Products in a logit, which is divided by their root.
  RelativeConfig relative{};
  TokenConvolution convolution{};
  PatchConfig patches{};
};

/// Whether the model reads pictures.
inline bool reads_pixels(const EncoderConfig& config) { return config.patches.num_channels > 0; }

/// Whether the vocabulary's head is the embedding of tokens.
inline bool has_tied_vocabulary(const EncoderConfig& config) {
  return config.output == EncoderOutput::kVocabulary && config.block.has_tied_head;
}

}  // namespace paperlab::nn
