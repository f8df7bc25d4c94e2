#pragma once
/// \file
/// Dense connections in a decoder: blocks read weighted sums over the outputs of all blocks before
/// them, one sum for each of the streams Q, K, V and R.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Eqs. (3) to (8), (10);
/// one stream with static weights: Pagliardini et al., "DenseFormer", arXiv:2402.02622.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/nn/connection.h"
#include "paperlab/nn/norm.h"

namespace paperlab::mudd {

/// Inputs of a block, [B, T, D] each, before its norms; without streams of their own all the same.
struct Streams {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  at::Tensor residual;  ///< not normalized: what the block adds to
};

/// What a block reads and what comes after it.
struct DenseLayer {
  using Parameter = std::shared_ptr<const at::Tensor>;

  /// Norms of the key's and value's stream; null: there is one norm for all, the block's.
  std::shared_ptr<const nn::NormLayer> key_norm;
  std::shared_ptr<const nn::NormLayer> value_norm;
  std::string ways;                   ///< Of the aggregate after the block; empty: there is none.
  std::vector<std::int64_t> sources;  ///< Its J states, ascending.
  Parameter bias;                     ///< [C, J], a
  Parameter w1;                       ///< [K, D]; null: the weights are `bias` for each token.
  Parameter w2;                       ///< [C J, K]
  Parameter generator_norm;           ///< [D]; null: the generator's norm has no scale.
  Parameter post_norm;                ///< [C, D], with PrePostNorm
};

struct DenseOptions {
  double eps = 1e-6;           ///< Of all RMSNorms here.
  bool has_tanh_gelu = false;  ///< In generators.
  bool is_multiway = true;     ///< Else the one stream is Q, K, V and R.
  PrePostNorm pre_post_norm = PrePostNorm::kNone;
  std::vector<DenseLayer::Parameter> source_norms{};  ///< [D] for each state, with PrePostNorm
};

/// Sees what passes through; each function may be absent.
struct DenseObserver {
  /// X_0, the embedding, and X_(l+1), the output of block l.
  std::function<void(std::int64_t number, const at::Tensor& state)> on_state{};
  /// The weights [C, B, T, J] of the aggregate after block `layer`.
  std::function<void(std::int64_t layer, const at::Tensor& weights)> on_weights{};
  /// The inputs of block `layer`; of the final norm for layer = L.
  std::function<void(std::int64_t layer, const Streams& streams)> on_streams{};
};

/// For block l with streams Q, K, V, R: X_(l+1) = FFN(norm(Y)) + Y with Y = attention(norms of Q,
/// K, V) + R, and after it each way's stream becomes sum over j of A_j X_j; a way without an
/// aggregate becomes X_(l+1). In a parallel block X_(l+1) = R + attention + FFN(norm(R)).
class PAPERLAB_API DenseConnection final : public nn::Connection {
 public:
  DenseConnection(std::vector<DenseLayer> layers, DenseOptions options,
                  std::shared_ptr<const DenseObserver> observer = nullptr)
      : layers_(std::move(layers)), options_(std::move(options)), observer_(std::move(observer)) {}

  std::unique_ptr<nn::Stream> start(const at::Tensor& embeddings) const override;

 private:
  std::vector<DenseLayer> layers_;
  DenseOptions options_;
  std::shared_ptr<const DenseObserver> observer_;
};

}  // namespace paperlab::mudd
