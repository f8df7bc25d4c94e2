#pragma once
/// \file
/// What a decoder is: sizes, the forms of its norms, attention and feed-forward part, positions.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace paperlab::nn {

/// How rotary frequencies are stretched beyond the trained length.
enum class RopeScaling : std::uint8_t { kNone, kLinear, kDynamic, kLlama3, kYarn };

/// Rotary position embedding, rotate-half form.
/// Source: Su et al., arXiv:2104.09864; linear: Chen et al., arXiv:2306.15595; yarn: Peng et al.,
/// arXiv:2309.00071; llama3: Llama 3.1's released configuration.
struct RopeConfig {
  double base = 10000.0;
  std::int64_t rotary_dim = 0;     ///< Lanes of a head that are rotated, even; 0: no rotation.
  std::int64_t max_positions = 0;  ///< The model's max_position_embeddings.
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                       ///< linear, dynamic, llama3, yarn
  std::int64_t original_max_positions = 0;   ///< llama3, yarn, dynamic; 0: max_positions
  double low_freq_factor = 1.0;              ///< llama3
  double high_freq_factor = 4.0;             ///< llama3
  double beta_fast = 32.0;                   ///< yarn
  double beta_slow = 1.0;                    ///< yarn
  std::optional<double> attention_factor{};  ///< yarn: of cos and sin; absent: from the factor
  std::optional<double> mscale{};            ///< yarn
  std::optional<double> mscale_all_dim{};    ///< yarn
  bool truncate = true;                      ///< yarn: whole numbers as the ramp's ends
};

enum class Norm : std::uint8_t { kRms, kLayer };

/// kGelu is the exact form, kGeluTanh its approximation by tanh.
enum class Activation : std::uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kTanh };

/// The rows of a matrix that makes queries, keys and values.
enum class QkvOrder : std::uint8_t {
  kHeadsFirst,  ///< [head][q, k, v][head_dim] (GPT-NeoX)
  kPartsFirst,  ///< [q, k, v][head][head_dim] (GPT-2)
};

/// A causal decoder. Counts are positive, `num_heads` is a multiple of `num_kv_heads`.
struct DecoderConfig {
  std::int64_t vocab_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t d_ff = 0;
  /// Of each layer, where they differ; empty: d_ff in all.
  std::vector<std::int64_t> ffn_dims{};
  std::int64_t max_positions = 0;  ///< Longer sequences are refused.
  Norm norm = Norm::kRms;
  double norm_eps = 1e-6;
  Activation activation = Activation::kSilu;
  bool has_gate = true;        ///< FFN: down(act(gate x) * up x); else down(act(up x)).
  bool has_fused_qkv = false;  ///< One matrix, its rows in this order:
  QkvOrder qkv_order = QkvOrder::kHeadsFirst;
  bool has_qkv_bias = false;
  bool has_out_bias = false;  ///< Of the attention's output.
  bool has_ffn_bias = false;
  bool has_head_bias = false;
  bool has_qk_norm = false;    ///< RMSNorm over head_dim of each query and key, before RoPE.
  bool is_parallel = false;    ///< x + attention(norm1 x) + ffn(norm2 x) (GPT-NeoX).
  bool has_tied_head = false;  ///< The head is the embedding.
  RopeConfig rope{};
  /// Of each layer: the last so many keys, a query's own included; 0: all. Empty: all in all.
  std::vector<std::int64_t> windows{};
  std::vector<std::int64_t> eos_token_ids{};
  std::optional<std::int64_t> pad_token_id{};
  double init_std = 0.02;  ///< Of Init::kNormal (nn/init.h).

  // What Llama has not.
  bool has_learned_positions = false;  ///< A table [position_offset + max_positions, d_model].
  std::int64_t position_offset = 0;    ///< Its row of position 0 (OPT: 2).
  /// Width of embedding and head, with matrices to d_model and back; 0 or d_model: none.
  std::int64_t embed_dim = 0;
  /// Multiplies the embeddings, rounded to float32 and to the parameters' dtype (Gemma).
  double embed_scale = 1.0;
  bool has_norm_weights = true;  ///< LayerNorm alone; false: no norm has weight or bias.
  bool has_norm_offset = false;  ///< RMSNorm alone: times 1 + weight (Gemma).
  bool is_norm_after = false;    ///< x = norm(x + f(x)) (OPT-350m); then no final norm.
  bool has_final_norm = true;
  bool has_post_norms = false;  ///< x + norm(f(norm x)) (Gemma 2).
  /// Of each layer: multiplies the logits of attention, besides 1 / sqrt(head_dim). Empty: 1.
  std::vector<double> attention_scales{};
  double logit_softcap = 0.0;               ///< c: logits are c tanh(logits / c); 0: as they are.
  std::optional<RopeConfig> window_rope{};  ///< Of layers with a window; absent: `rope`.
};

/// Whether embedding and head are of another width than the blocks.
inline bool has_projections(const DecoderConfig& config) {
  return config.embed_dim != 0 && config.embed_dim != config.d_model;
}

}  // namespace paperlab::nn
