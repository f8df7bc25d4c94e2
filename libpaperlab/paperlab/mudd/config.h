#pragma once
/// \file
/// What a MUDDFormer is: its sizes, its variant, and which states each connection reads.
///
/// Blocks are 0..L-1 ("layers"). The states are X_0, the embedding, and X_{l+1}, the output of
/// block l. The aggregate after block l reads some of X_0..X_{l+1}; what it gives is the input of
/// block l + 1, after the last block that of the final norm.
/// Source: Xiao et al., "MUDDFormer: Breaking Residual Bottlenecks in Transformers via Multiway
/// Dynamic Dense Connections", ICML 2025, arXiv:2502.12170.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::mudd {

/// How blocks are connected.
enum class Variant : std::uint8_t {
  kMudd,              ///< Multiway dynamic dense, FFN widths that grow with depth.
  kBase,              ///< Residual connections alone.
  kStatic,            ///< One stream, weights a (DenseFormer, arXiv:2402.02622).
  kDynamic,           ///< One stream, weights of a generator.
  kMultiwayStatic,    ///< A stream for each way, weights a.
  kMultiwayDynamic,   ///< A stream for each way, weights of a generator.
  kHyperConnections,  ///< Several residual streams (arXiv:2409.19606).
  kLime,              ///< Keys and values of all layers so far (arXiv:2502.09245).
};

/// Norms around an aggregate; n_j is the norm of source j, p_c that of stream c.
enum class PrePostNorm : std::uint8_t {
  kNone,
  kEq10,           ///< p_c(sum_j A_cj n_j(X_j)) + X_i for every stream (Eq. 10).
  kLaterRevision,  ///< p_R for stream R alone; Q, K and V are the sum + X_i.
};

/// A decoder with connections through depth. Options that a variant has no use for do not change
/// it. The defaults are those of the paper.
struct MuddConfig {
  std::int64_t vocab_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t num_heads = 0;
  std::int64_t d_ff = 0;  ///< Before re-allocation.
  Variant variant = Variant::kMudd;
  PrePostNorm pre_post_norm = PrePostNorm::kNone;
  /// The block of Pythia (GPT-NeoX): LayerNorm, biases, an FFN down(gelu(up x)), a quarter of each
  /// head rotated, and both sublayers read the block's input. Else RMSNorm, SwiGLU, no biases.
  bool parallel_block = false;
  bool has_qk_norm = false;                ///< RMSNorm over head_dim of queries and keys.
  bool has_tanh_gelu = false;              ///< In generators; else the exact form.
  std::optional<bool> ffn_reallocation{};  ///< Absent: for kMudd only.
  std::string ways = "QKVR";  ///< Multiway: the streams that have an aggregate, in this order.
  double norm_eps = 1e-6;     ///< Of all norms, the generator's included.
  double rope_base = 10000.0;
  std::int64_t hidden_round = 0;        ///< See hidden_size(); 0: no rounding.
  std::int64_t last_hidden_expand = 4;  ///< Factor of the last generator's hidden size.
  std::int64_t ffn_round = 128;         ///< Re-allocated widths are multiples of it.
  std::int64_t dilation = 1;
  std::int64_t period = 1;
  std::optional<std::int64_t> window{};
  std::int64_t num_streams = 4;  ///< Hyper-connections.

  std::int64_t num_kv_heads = 0;  ///< 0: num_heads
  std::int64_t head_dim = 0;      ///< 0: d_model / num_heads
  double rotary_pct = 0.0;  ///< Part of a head that is rotated; 0: 1/4 in Pythia's block, else 1.
  bool has_parallel_residual = true;  ///< Of Pythia's block; false: its FFN reads the sum.
  bool has_linear_bias = true;        ///< Of Pythia's block: of its FFN.
  bool has_tied_head = false;
  std::int64_t max_positions = std::int64_t{1} << 20;  ///< Longer sequences are refused.
  std::optional<std::int64_t> bos_token_id{};
  std::optional<std::int64_t> eos_token_id{};
  std::optional<std::int64_t> pad_token_id{};
};

/// \param function  in whose name errors are.
/// \throws ValueError  "FUNCTION: ..." naming the option: a count below 1 or above 2^31 - 1,
///                     num_layers above 10000, d_model no multiple of num_heads (unless head_dim is
///                     given), a head_dim that is odd or above 256, num_kv_heads no divisor of
///                     num_heads, ways that are not some of Q, K, V, R in that order, hidden_round
///                     < 0, norm_eps or rope_base not positive, a window with a dilation above 1,
///                     or a re-allocated width that rounds to 0.
PAPERLAB_API void check(const MuddConfig& config, const char* function = "MuddFormer");

/// Whether the variant has aggregates with a stream of its own for each of `ways`.
PAPERLAB_API bool is_multiway(Variant variant);

/// Whether its aggregates have a generator.
PAPERLAB_API bool is_dynamic(Variant variant);

/// Whether it has aggregates.
PAPERLAB_API bool is_dense(Variant variant);

/// Whether block `layer` has a norm for each of Q, K and V: multiway variants, except in block 0.
PAPERLAB_API bool has_way_norms(const MuddConfig& config, std::int64_t layer);

/// Whether there is an aggregate after block `layer`: layer + 1 is a multiple of the period, and
/// after the last block, R is among the ways.
PAPERLAB_API bool aggregate_after(const MuddConfig& config, std::int64_t layer);

/// Returns the numbers j of the states X_j that the aggregate after block `layer` reads, ascending.
/// With i = layer + 1: all of 0..i with j = i (mod dilation); with a window n: 0 and
/// max(1, i - n + 1)..i. Empty where there is no aggregate.
PAPERLAB_API std::vector<std::int64_t> sources_of(const MuddConfig& config, std::int64_t layer);

/// Returns the streams that the aggregate after block `layer` computes: `ways`; after the last
/// block "R"; for the variants of one way "R" everywhere, a stream that is Q, K and V as well.
/// Empty where there is no aggregate. Streams without an aggregate are X_{layer+1}.
PAPERLAB_API std::string ways_of(const MuddConfig& config, std::int64_t layer);

/// Returns the hidden size of the generator after block `layer`: K = C J for C ways and J sources,
/// after the last block times last_hidden_expand; then, with r = hidden_round > 0,
/// (floor(K / r) + 1) r. 0 where there is no generator.
PAPERLAB_API std::int64_t hidden_size(const MuddConfig& config, std::int64_t layer);

/// Returns round(d_ff (l / (L - 1) + 1/2) / round_to) round_to for l = 0..L-1, halves to even;
/// L = 1: the factor is 1 (Eq. 9).
/// \throws ValueError  if an argument is below 1 or above 2^31 - 1, num_layers above 10000, or a
///                     width rounds to 0.
PAPERLAB_API std::vector<std::int64_t> reallocated_ffn_dims(std::int64_t d_ff,
                                                            std::int64_t num_layers,
                                                            std::int64_t round_to = 128);

/// The FFN's width in each block where widths are re-allocated; else empty: d_ff everywhere.
PAPERLAB_API std::vector<std::int64_t> ffn_dims_of(const MuddConfig& config);

PAPERLAB_API bool has_ffn_reallocation(const MuddConfig& config);
PAPERLAB_API std::int64_t num_kv_heads_of(const MuddConfig& config);
PAPERLAB_API std::int64_t head_dim_of(const MuddConfig& config);

/// Leading lanes of a head that are rotated: floor(head_dim rotary_pct), an odd number less one, at
/// least 2.
PAPERLAB_API std::int64_t rotary_dim_of(const MuddConfig& config);

}  // namespace paperlab::mudd
