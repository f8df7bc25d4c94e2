#pragma once
/// \file
/// Attention of tensors on the CPU: what the operators run where tensors have data.

#include <ATen/core/Tensor.h>

#include <tuple>

#include "paperlab/ops/attention_arguments_internal.h"

namespace paperlab::ops {

using AttentionResults = std::tuple<at::Tensor, at::Tensor>;  ///< out, lse

/// With respect to query, key, value, prefix_query, prefix_key, prefix_value; [0] for absent ones.
using AttentionGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// New tensors without values, contiguous, of the sizes and dtypes of the results. The arguments
/// may have no data.
AttentionResults new_results(const AttentionArguments& arguments);
AttentionGradients new_gradients(const AttentionArguments& arguments);

/// Check the arguments, that they are on the CPU, and the values in key_start and key_end; throw
/// c10::ValueError or c10::TypeError before any work.
AttentionResults attention_cpu(const AttentionArguments& arguments);
AttentionResults attention_decode_cpu(const AttentionArguments& arguments);
AttentionGradients attention_backward_cpu(const AttentionArguments& arguments,
                                          const AttentionBackwardArguments& backward);

}  // namespace paperlab::ops
