#pragma once
/// \file
/// MUDDFormer and the models it is compared with: decoders whose connection through depth is that
/// of a MuddConfig.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170.

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/mudd/dense_connection.h"
#include "paperlab/nn/connection.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::mudd {

/// Returns what stands in the residual connection's place.
/// \param config    as check() wants it.
/// \param of        the parameters by their names (layout.h).
/// \param observer  sees each pass; null: nobody does.
/// \throws ValueError  if there is an observer and the variant is not the base and has no dense
///                     connections.
PAPERLAB_API std::shared_ptr<const nn::Connection> make_connection(
    const MuddConfig& config, const nn::ParameterOf& of,
    std::shared_ptr<const DenseObserver> observer = nullptr);

/// Returns a decoder of these parameters; who has one may look into it by another of the same
/// tensors with an observer.
/// \param values  one for each of parameter_specs(config), in that order.
/// \throws ValueError, ShapeError, DTypeError  as check(), make_connection() and nn::Decoder.
PAPERLAB_API std::shared_ptr<nn::Decoder> make_decoder(
    const MuddConfig& config, std::vector<at::Tensor> values,
    std::shared_ptr<const DenseObserver> observer = nullptr);

}  // namespace paperlab::mudd
