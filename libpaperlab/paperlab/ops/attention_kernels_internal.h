#pragma once
/// \file
/// Attention of tensors by our kernels, and what all ways of computing it share.

#include <ATen/core/Tensor.h>

#include <tuple>

#include "kernels/attention/key_rule.h"
#include "paperlab/ops/attention_arguments_internal.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {

using AttentionResults = std::tuple<at::Tensor, at::Tensor>;  ///< out, lse

/// With respect to query, key, value, prefix_query, prefix_key, prefix_value; [0] for absent ones.
using AttentionGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// New tensors without values, contiguous, of the sizes and dtypes of the results. The arguments
/// may have no data.
AttentionResults new_results(const AttentionArguments& arguments);
AttentionGradients new_gradients(const AttentionArguments& arguments);

/// Which keys the rows see.
kernels::KeyRule rule_of(const AttentionArguments& arguments);

/// What the logits are multiplied by.
double scale_of(const AttentionArguments& arguments);

/// Of arguments that were checked. Check the values in key_start and key_end: throw c10::ValueError
/// before any work; values on a GPU are not looked at.
/// \param route  kCpu or kCuda.
AttentionResults attention_by_kernels(const AttentionArguments& arguments, Route route);
AttentionGradients attention_backward_by_kernels(const AttentionArguments& arguments,
                                                 const AttentionBackwardArguments& backward,
                                                 Route route);

}  // namespace paperlab::ops
