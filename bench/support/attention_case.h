#pragma once
// Shapes, memory and random inputs of the attention benchmark; batch 1.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention/attention.h"

namespace paperlab::bench {

struct AttentionShape {
  kernels::DType dtype = kernels::DType::kFloat32;
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t num_queries = 1;
  std::int64_t num_keys = 1;
  std::int64_t head_dim = 64;
  kernels::KeyRule rule;
};

const char* dtype_name(kernels::DType dtype);
std::size_t element_bytes(kernels::DType dtype);

// 4 D for each pair of a row and a key that it sees: products only, a multiply-add counts as two.
double forward_flops(const AttentionShape& shape);
// Five products instead of two.
double backward_flops(const AttentionShape& shape);
// Bytes of K and V.
std::size_t cache_bytes(const AttentionShape& shape);

// Memory on a cache line; NaN in every dtype until written.
class Buffer {
 public:
  explicit Buffer(std::size_t num_bytes);
  void* data() const { return data_.get(); }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  std::size_t num_bytes_;
};

// Normal numbers, `stream` tells which.
void fill_normal(void* data, kernels::DType dtype, std::size_t count, std::size_t stream);

// A contiguous tensor [1, heads, rows, width] at `data`.
kernels::TensorView view_of(void* data, kernels::DType dtype, std::int64_t heads, std::int64_t rows,
                            std::int64_t width);
kernels::ConstTensorView as_const(const kernels::TensorView& view);
std::vector<double> values_of(const kernels::ConstTensorView& contiguous);

// Inputs and outputs of a forward and a backward pass. The scale is 1/sqrt(D).
class AttentionCase {
 public:
  explicit AttentionCase(const AttentionShape& shape);
  // The same inputs in float64: what the definition is evaluated on.
  AttentionCase exact() const;

  const AttentionShape& shape() const { return shape_; }
  kernels::AttentionInputs inputs() const;
  kernels::AttentionOutputs outputs() const;
  kernels::AttentionBackwardInputs backward_inputs() const;  // after a forward pass
  kernels::AttentionGradients gradients() const;

  std::vector<double> out() const;
  std::vector<std::vector<double>> gradient_values() const;  // of query, key, value

 private:
  enum Tensor { kQuery, kKey, kValue, kGradOut, kOut, kGradQuery, kGradKey, kGradValue };
  kernels::TensorView view(Tensor tensor) const;
  kernels::ConstTensorView const_view(Tensor tensor) const { return as_const(view(tensor)); }

  AttentionShape shape_;
  std::vector<Buffer> tensors_;
  Buffer lse_;
};

}  // namespace paperlab::bench
