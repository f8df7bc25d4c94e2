#pragma once
/// \file
/// Vision transformers with dense connections (MUDDViT) as encoders of paperlab::nn.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Appendix F.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/vit_config.h"
#include "paperlab/nn/encoder.h"
#include "paperlab/nn/encoder_load.h"

namespace paperlab::mudd {

/// Returns the positions of a picture's patches, [1, rows columns, width], row by row: sines and
/// cosines of the column's number, then of the row's, each at width / 4 frequencies from 1 to 1e-4,
/// evenly spaced by their logarithms (one frequency: 1).
/// \throws ValueError  unless rows and columns are >= 1 and width is a multiple of 4 and >= 4.
PAPERLAB_API at::Tensor sincos_positions(std::int64_t rows, std::int64_t columns,
                                         std::int64_t width, at::ScalarType dtype);

/// Returns an encoder of these parameters.
/// \param values  one for each of parameter_specs(config), in that order.
/// \throws ValueError, ShapeError, DTypeError  as check() and nn::Encoder.
PAPERLAB_API std::shared_ptr<nn::Encoder> make_encoder(const VitConfig& config,
                                                       std::vector<at::Tensor> values);

/// Returns initial values for each of parameter_specs(config), in that order: matrices, patches'
/// included, Xavier's normal values, biases 0, norms 1, positions sincos_positions(), connections
/// as for a MUDDFormer (initial_values.h), so that every stream starts as the newest state. The
/// backbone is the same for all variants. Positions do not require gradients, all else does.
/// \throws ValueError, DTypeError  as check(); unless dtype is float32, float64 or bfloat16.
PAPERLAB_API std::vector<at::Tensor> initial_values(const VitConfig& config, std::uint64_t seed,
                                                    at::ScalarType dtype);

/// Returns a model with initial_values(config, seed, dtype). Its settings say what it is; there is
/// no published layout, and nothing reads a directory of it.
/// \throws ValueError, DTypeError  as initial_values().
PAPERLAB_API nn::HfEncoder new_vit(const VitConfig& config, std::uint64_t seed,
                                   at::ScalarType dtype = at::kFloat);

}  // namespace paperlab::mudd
