#pragma once
// What an operator of group pooling is called with, and who computes it.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::ops::pooling {

using Pooled = std::tuple<at::Tensor, at::Tensor>;  // core_key, core_value
using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of query ([0]: none), key, value

struct Arguments {
  const char* function;
  at::Tensor query;  // not defined: absent
  at::Tensor key;
  at::Tensor value;
  std::int64_t group;
  std::int64_t first;
  at::Tensor start;
  std::string kind;
  bool per_kv_head;
  std::optional<double> scale;
};

inline bool has_evaluator(const Arguments& in) { return in.kind == "attention"; }

// Of the logits.
double scale_of(const Arguments& in);

// [B, P, m, D].
inline checks::Shape core_shape(const Arguments& in) {
  const c10::SymIntArrayRef key = in.key.sym_sizes();
  const bool is_per_query = has_evaluator(in) && !in.per_kv_head;
  const c10::SymInt behind = key[2] - in.first;
  const c10::SymInt groups = behind > 0 ? behind / in.group : c10::SymInt(0);
  return {key[0], is_per_query ? in.query.sym_size(1) : key[1], groups, key[3]};
}

// Throws c10::ValueError unless starts are in 0..S and the queries that the first `groups` groups
// of each row need are there; starts on a GPU are not looked at.
void check_values(const Arguments& in, std::int64_t groups);

// By our kernel of `route`, kCpu or kCuda; every element is written.
void pool_by_kernel(Route route, const Arguments& in, const at::Tensor& core_key,
                    const at::Tensor& core_value);
void pool_backward_by_kernel(Route route, const Arguments& in, const at::Tensor& grad_key,
                             const at::Tensor& grad_value, const Gradients& gradients);

// Writes the first groups of each row, as many as core_key [B, P, m, D] has. Any device, which
// nothing here waits for; any floating-point dtype, sums in float32 (float64 for float64). Checks
// values first; rows that a start on a GPU spoils are NaN, their gradients too.
void pool_torch(const Arguments& in, const at::Tensor& core_key, const at::Tensor& core_value);

// New tensors in the dtype of key.
Gradients pool_backward_torch(const Arguments& in, const at::Tensor& grad_key,
                              const at::Tensor& grad_value);

}  // namespace paperlab::ops::pooling
