#pragma once
// Core-context attention as a model runs it: pooling, then attention over core tokens and the
// window, forward and backward; float32, batch 1, as many key heads as query heads.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/attention_case.h"
#include "kernels/group_pool/group_pool.h"

namespace paperlab::bench {

struct CoreContextShape {
  std::int64_t num_heads = 2;
  std::int64_t length = 4096;
  std::int64_t head_dim = 128;
  std::int64_t group = 16;
  std::int64_t window = 1024;
  kernels::DType dtype = kernels::DType::kFloat32;

  std::int64_t num_core() const { return length > window ? (length - window) / group : 0; }
  AttentionShape dense(std::int64_t num_queries) const;
  AttentionShape core_context(std::int64_t num_queries) const;
};

// The passes on the memory of a dense case, with core tokens and gradients of its own.
class CoreContextCase {
 public:
  // `memory` is of shape.dense(length) and outlives this.
  CoreContextCase(const CoreContextShape& shape, const AttentionCase& memory);

  void forward(const Executor& executor);
  // After forward; pooling's gradients are added to the others, as autograd does.
  void backward(const Executor& executor);

  // Of the core tokens and gradients besides those of the inputs.
  std::int64_t forward_bytes() const;
  std::int64_t backward_bytes() const;

 private:
  kernels::AttentionInputs inputs() const;
  kernels::GroupPoolInputs pool_inputs() const;
  kernels::TensorView core(const Buffer& buffer) const;

  CoreContextShape shape_;
  const AttentionCase& memory_;
  Buffer core_key_, core_value_;
  Buffer grad_core_key_, grad_core_value_;
  std::vector<Buffer> pool_gradients_;  // of query, key, value; made by the first backward pass
};

// Why the passes, or a step over a cache, are wrong on a small shape, or nothing: float32 against
// the definitions in float64.
std::string wrong_core_context(const Executor& executor);

}  // namespace paperlab::bench
