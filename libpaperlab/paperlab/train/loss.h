#pragma once
/// \file
/// What a decoder is trained by: the mean cross-entropy of the next token.

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::train {

/// Returns the mean of -ln p(token t + 1 | tokens up to t) over all rows and t, [] in float32
/// (float64 for float64), differentiable.
/// \param tokens  [B, T + 1] int64, B and T >= 1; the first T are read, the last T are predicted.
/// \throws c10::ValueError, c10::TypeError  as Decoder::forward().
PAPERLAB_API at::Tensor next_token_loss(nn::Decoder& decoder, const at::Tensor& tokens);

}  // namespace paperlab::train
