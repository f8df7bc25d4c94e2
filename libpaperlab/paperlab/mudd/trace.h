#pragma once
/// \file
/// What passes through a model's connections in one pass.

#include <ATen/core/Tensor.h>

#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/mudd/dense_connection.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::mudd {

/// Of one pass over tokens [B, T]; a tensor is not defined where there is no aggregate.
struct Trace {
  std::vector<at::Tensor> states;   ///< X_0 .. X_L, [B, T, D].
  std::vector<at::Tensor> weights;  ///< Of the aggregate after block l, [C, B, T, J].
  std::vector<Streams> streams;     ///< Inputs of block l, [B, T, D]; the last: of the final norm.
  at::Tensor logits;                ///< [B, T, V]
};

/// \throws ValueError  "FUNCTION: variant must ..." if the variant is not the base and has no dense
///                     connections.
PAPERLAB_API void check_traceable(const char* function, const MuddConfig& config);

/// Runs the model, which `config` describes, and returns what its connections saw. Differentiable.
/// \throws ValueError  as check_traceable().
/// \throws c10::ValueError, c10::TypeError  as Decoder::forward().
PAPERLAB_API Trace trace(const MuddConfig& config, const nn::Decoder& decoder,
                         const at::Tensor& tokens);

}  // namespace paperlab::mudd
