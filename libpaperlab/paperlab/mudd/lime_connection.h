#pragma once
/// \file
/// Layer-integrated memory in a decoder: each head's keys and values are weighted sums over the
/// heads of all layers so far.
/// Source: Gerasimov et al., "You Do Not Fully Utilize Transformer's Representation Capacity",
/// arXiv:2502.09245, Sec. 3 (static routers).

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/connection.h"

namespace paperlab::mudd {

/// The plain residual connection with routed heads: for the G key heads of layer l and its router
/// R_l [G, (l + 1) G],
///   (k, v)_h = sum over m of R_l[h, m] (k, v)_m
/// where m counts the heads of layers 0..l, layer by layer, as projected and not yet rotated. Layer
/// 0 uses its own.
/// With QK-norm (our choice) a layer's keys are normalized by its own norm before they are routed,
/// and the sum is not normalized again. So the heads that a router adds are of one size in all
/// layers but for the norms' scales, a row of R_l keeps its scale (which a norm after the sum would
/// undo for keys and not for values), and a router that picks the own heads is the plain model.
class PAPERLAB_API LimeConnection final : public nn::Connection {
 public:
  /// \param routers  R_1 .. R_(L - 1).
  explicit LimeConnection(std::vector<std::shared_ptr<const at::Tensor>> routers)
      : routers_(std::move(routers)) {}

  std::unique_ptr<nn::Stream> start(const at::Tensor& embeddings) const override;

 private:
  std::vector<std::shared_ptr<const at::Tensor>> routers_;
};

}  // namespace paperlab::mudd
