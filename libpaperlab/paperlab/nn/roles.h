#pragma once
/// \file
/// Parts of a decoder's parameters by what they do: the query projection of layer i, head h.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::nn {

/// Returns the weights of a role: q, k, v, o, gate, up, down, norm, embed, head; besides these
/// q_norm, k_norm, post_attention_norm, post_ffn_norm, position, project_in, project_out. Matrices
/// are [out, in], of GPT-2 too, which stores them transposed.
///
/// \param layer  0..num_layers-1; absent: embed, head, and norm for the final norm. norm with a
///               layer is that of its attention; attention_norm and ffn_norm name both.
/// \param head   q and o: 0..num_heads-1, k and v: 0..num_kv_heads-1: the rows (of o: the columns)
///               of that head.
/// \return       a view that shares memory with the parameter, differentiable; a copy only for q,
///               k or v of all heads where the three are one matrix by heads (GPT-NeoX).
/// \throws ValueError  if the decoder has no such part.
PAPERLAB_API at::Tensor tensor_of(const Decoder& decoder, const std::string& role,
                                  std::optional<std::int64_t> layer,
                                  std::optional<std::int64_t> head);

}  // namespace paperlab::nn
