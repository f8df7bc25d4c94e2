#pragma once
/// \file
/// Dynamic hyper-connections in a decoder: n streams that each sublayer reads as one weighted sum
/// and carries on mixed, with weights that each token makes from its streams.
/// Source: Zhu et al., "Hyper-Connections", ICLR 2025, arXiv:2409.19606, Sec. 2 and Algorithm 2.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/connection.h"

namespace paperlab::mudd {

/// Parameters of one residual site; n streams of width D.
struct HyperSite {
  using Parameter = std::shared_ptr<const at::Tensor>;

  Parameter norm;                 ///< [D], of the RMSNorm before the dynamic part.
  Parameter static_alpha;         ///< [n, n + 1]: column 0 is the sublayer's input.
  Parameter static_beta;          ///< [n]
  Parameter dynamic_alpha_fn;     ///< [D, n + 1]
  Parameter dynamic_beta_fn;      ///< [D]
  Parameter dynamic_alpha_scale;  ///< one number
  Parameter dynamic_beta_scale;   ///< likewise
};

/// For streams H [n, B, T, D], which begin as copies of the embedding:
///   alpha = scale_a tanh(norm(H) W_a) + alpha_0,  beta = scale_b tanh(norm(H) w_b) + beta_0,
///   M = alpha^T H,  out = sublayer(prenorm(M_0)),  H_r <- beta_r out + M_r.
/// The decoder's result is the sum over the streams. Sites 2l and 2l + 1 are those of layer l's
/// attention and feed-forward part. In a parallel block both make alpha, beta and M_0 from the same
/// H; the attention's site writes first, and M_1..M_n of the other site are then mixed from what it
/// wrote (our choice: the paper has no such block). With n = 1, alpha = [1 | 1] and beta = 1 this
/// is H + attention(norm(H)) + FFN(norm(H)).
class PAPERLAB_API HyperConnection final : public nn::Connection {
 public:
  /// \param sites  two for each layer.
  HyperConnection(std::vector<HyperSite> sites, double eps) : sites_(std::move(sites)), eps_(eps) {}

  std::unique_ptr<nn::Stream> start(const at::Tensor& embeddings) const override;

 private:
  std::vector<HyperSite> sites_;
  double eps_;
};

}  // namespace paperlab::mudd
