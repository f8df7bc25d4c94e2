#pragma once
// The memory of a case of attention: random inputs, and outputs that start as NaN in memory whose
// unused bytes are watched.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/support/attention_cases.h"

namespace paperlab::test {

// The nearest bfloat16, ties to even.
float round_to_bfloat16(float x);

// One tensor in memory of its own. All bytes are 0xFF, which is NaN in every dtype, until elements
// are set: between the elements, before and (outputs alone) behind them they stay so. An input ends
// with its last element, so that the address sanitizer sees who reads on.
class GuardedTensor {
 public:
  enum class Use : std::uint8_t { kInput, kOutput };

  GuardedTensor() = default;  // absent
  GuardedTensor(kernels::DType dtype, std::array<std::int64_t, 4> size, AttentionLayout layout,
                std::int64_t offset, Use use);

  kernels::ConstTensorView view() const;
  kernels::TensorView view();
  bool is_absent() const { return bytes_ == nullptr; }

  double get(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const;
  void set(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d, double value);

  std::int64_t size(int dimension) const { return size_[static_cast<std::size_t>(dimension)]; }
  std::int64_t num_elements() const { return size_[0] * size_[1] * size_[2] * size_[3]; }
  std::array<std::int64_t, 4> index_of(std::int64_t element) const;  // row-major
  std::vector<double> values() const;                                // row-major
  void set_values(const std::vector<double>& values);                // rounded to the dtype

  void fill_with_nan();
  std::vector<std::byte> all_bytes() const;
  std::span<std::byte> bytes() { return {bytes_.get(), static_cast<std::size_t>(num_bytes_)}; }
  std::span<std::byte> memory() { return {bytes_.get(), static_cast<std::size_t>(num_bytes_)}; }
  bool has_untouched_gaps() const;  // every byte that belongs to no element is still 0xFF

 private:
  struct Free {
    void operator()(std::byte* bytes) const;
  };

  std::byte* element(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const;

  kernels::DType dtype_ = kernels::DType::kFloat32;
  std::array<std::int64_t, 4> size_ = {0, 0, 0, 0};
  std::array<std::int64_t, 4> stride_ = {0, 0, 0, 1};
  std::int64_t num_bytes_ = 0;
  std::int64_t first_ = 0;  // byte at which the elements start
  std::unique_ptr<std::byte[], Free> bytes_;
};

// All that a case needs. Keys and values outside a batch row's range are NaN.
class AttentionTensors {
 public:
  explicit AttentionTensors(const AttentionCase& of);

  kernels::AttentionInputs inputs() const;
  kernels::AttentionOutputs outputs();  // filled with NaN
  kernels::AttentionBackwardInputs backward_inputs() const;
  kernels::AttentionGradients gradients();  // filled with NaN

  void run_forward(const Executor& executor);
  void run_backward(const Executor& executor);  // after run_forward

  // The inputs of both directions with their gaps, to see that nobody changed them.
  std::vector<std::byte> input_bytes() const;
  // Those that the case has: out, lse, grad_query, grad_key, ...
  std::vector<const GuardedTensor*> forward_results() const;
  std::vector<const GuardedTensor*> backward_results() const;

  AttentionCase of;
  std::vector<std::int64_t> key_start;  // [B] or empty; positions
  std::vector<std::int64_t> key_end;
  GuardedTensor query, key, value, prefix_query, prefix_key, prefix_value;
  GuardedTensor grad_out, grad_lse;
  GuardedTensor out, lse;
  GuardedTensor query_gradient, key_gradient, value_gradient;
  GuardedTensor prefix_query_gradient, prefix_key_gradient, prefix_value_gradient;

  std::int64_t start(std::int64_t b) const;
  std::int64_t end(std::int64_t b) const;
};

}  // namespace paperlab::test
