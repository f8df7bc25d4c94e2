#pragma once
/// \file
/// The arguments of the attention operators, and every check of them that needs no data.

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>

namespace paperlab::ops {

/// As in attention.h; sizes, window and num_past may be symbols. A tensor that is not defined is
/// absent.
struct AttentionArguments {
  const char* function;  ///< The operator's name, for the messages.
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  bool causal = true;
  std::optional<c10::SymInt> window;
  std::optional<double> scale;
  at::Tensor key_start;
  at::Tensor key_end;
  at::Tensor prefix_query;
  at::Tensor prefix_key;
  at::Tensor prefix_value;
  std::int64_t prefix_group = 0;
  std::int64_t prefix_kept = 0;
  bool prefix_overlap = false;
  bool prefix_truncated = false;
  c10::SymInt num_past = 0;
};

struct AttentionBackwardArguments {
  at::Tensor grad_out;  ///< [B, H, T, D], dtype of query.
  at::Tensor grad_lse;  ///< [B, H, T], dtype of lse; absent: zeros.
  at::Tensor out;       ///< Of the forward pass, as lse.
  at::Tensor lse;
};

/// float32, and float64 for float64.
at::ScalarType lse_dtype(const at::Tensor& query);

/// Throws c10::ValueError or c10::TypeError unless the arguments are as in attention.h. The values
/// in key_start and key_end are left to the kernel: tensors without data have none.
void check_arguments(const AttentionArguments& arguments);

/// The same for the operator of T = 1.
void check_decode_arguments(const AttentionArguments& arguments);

/// The same for what the backward pass takes besides; to be called after check_arguments.
void check_backward_arguments(const AttentionArguments& arguments,
                              const AttentionBackwardArguments& backward);

}  // namespace paperlab::ops
