#include "bench/support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

namespace paperlab::bench {
namespace {

using kernels::BFloat16;
using kernels::DType;

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kNumNormal = 1000003;  // a prime: no two rows of a tensor are equal

// The float32 nearest to x has the result in its upper half; ties to even.
BFloat16 to_bfloat16(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U)};
}

float to_float(BFloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16U;
  float value = 0.0F;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class T>
std::vector<T> normal_numbers() {
  std::mt19937_64 generator(7);
  std::normal_distribution<float> normal;
  std::vector<T> numbers(kNumNormal);
  for (T& number : numbers) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      number = to_bfloat16(normal(generator));
    } else {
      number = normal(generator);
    }
  }
  return numbers;
}

// The same numbers over and over, from a place that depends on `stream`.
template <class T>
void fill(void* data, std::size_t count, std::size_t stream) {
  static const std::vector<T> numbers = normal_numbers<T>();
  std::size_t from = stream * 123457 % kNumNormal;
  for (std::size_t at = 0; at < count;) {
    const std::size_t length = std::min(count - at, kNumNormal - from);
    std::memcpy(static_cast<T*>(data) + at, numbers.data() + from, length * sizeof(T));
    at += length;
    from = 0;
  }
}

}  // namespace

const char* dtype_name(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kBFloat16 ? "bfloat16" : "float64";
}

std::size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBFloat16 ? 2 : 8;
}

double forward_flops(const AttentionShape& shape) {
  double num_pairs = 0.0;
  for (std::int64_t t = 0; t < shape.num_queries; ++t) {
    const std::int64_t p = kernels::key_position(t, shape.num_queries, shape.num_keys);
    const kernels::VisibleKeys keys = shape.rule.visible(p, 0, shape.num_keys);
    num_pairs += static_cast<double>(keys.prefix_end + keys.end - keys.begin);
  }
  return 4.0 * static_cast<double>(shape.head_dim * shape.num_heads) * num_pairs;
}

double backward_flops(const AttentionShape& shape) { return 2.5 * forward_flops(shape); }

std::size_t cache_bytes(const AttentionShape& shape) {
  return 2 * element_bytes(shape.dtype) *
         static_cast<std::size_t>(shape.num_kv_heads * shape.num_keys * shape.head_dim);
}

Buffer::Buffer(std::size_t num_bytes)
    : data_(std::aligned_alloc(kAlignment, (num_bytes + kAlignment) / kAlignment * kAlignment)),
      num_bytes_(num_bytes) {
  if (!data_) {
    throw std::bad_alloc();
  }
  std::memset(data_.get(), 0xFF, num_bytes);
}

void Buffer::Free::operator()(void* data) const { std::free(data); }

void fill_normal(void* data, DType dtype, std::size_t count, std::size_t stream) {
  if (dtype == DType::kBFloat16) {
    fill<BFloat16>(data, count, stream);
  } else if (dtype == DType::kFloat32) {
    fill<float>(data, count, stream);
  } else {
    fill<double>(data, count, stream);
  }
}

kernels::TensorView view_of(void* data, DType dtype, std::int64_t heads, std::int64_t rows,
                            std::int64_t width) {
  return {data, dtype, {1, heads, rows, width}, {heads * rows * width, rows * width, width, 1}};
}

kernels::ConstTensorView as_const(const kernels::TensorView& view) {
  kernels::ConstTensorView result{view.data, view.dtype};
  std::copy(std::begin(view.size), std::end(view.size), result.size);
  std::copy(std::begin(view.stride), std::end(view.stride), result.stride);
  return result;
}

std::vector<double> values_of(const kernels::ConstTensorView& view) {
  std::vector<double> values(
      static_cast<std::size_t>(view.size[0] * view.size[1] * view.size[2] * view.size[3]));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = view.dtype == DType::kFloat32 ? static_cast<const float*>(view.data)[i]
                : view.dtype == DType::kBFloat16
                    ? to_float(static_cast<const BFloat16*>(view.data)[i])
                    : static_cast<const double*>(view.data)[i];
  }
  return values;
}

AttentionCase::AttentionCase(const AttentionShape& shape)
    : shape_(shape),
      lse_(sizeof(double) * static_cast<std::size_t>(shape.num_heads * shape.num_queries)) {
  const auto width = static_cast<std::size_t>(shape.head_dim);
  const std::size_t query = width * static_cast<std::size_t>(shape.num_heads * shape.num_queries);
  const std::size_t key = width * static_cast<std::size_t>(shape.num_kv_heads * shape.num_keys);
  for (const std::size_t count : {query, key, key, query, query, query, key, key}) {
    tensors_.emplace_back(count * element_bytes(shape.dtype));
  }
  for (const Tensor tensor : {kQuery, kKey, kValue, kGradOut}) {
    const std::size_t count = tensors_[tensor].num_bytes() / element_bytes(shape.dtype);
    fill_normal(tensors_[tensor].data(), shape.dtype, count, tensor);
  }
}

AttentionCase AttentionCase::exact() const {
  AttentionShape shape = shape_;
  shape.dtype = DType::kFloat64;
  AttentionCase result(shape);
  for (const Tensor tensor : {kQuery, kKey, kValue, kGradOut}) {
    const std::vector<double> values = values_of(const_view(tensor));
    std::memcpy(result.tensors_[tensor].data(), values.data(), values.size() * sizeof(double));
  }
  return result;
}

kernels::TensorView AttentionCase::view(Tensor tensor) const {
  const bool is_key =
      tensor == kKey || tensor == kValue || tensor == kGradKey || tensor == kGradValue;
  return view_of(tensors_[tensor].data(), shape_.dtype,
                 is_key ? shape_.num_kv_heads : shape_.num_heads,
                 is_key ? shape_.num_keys : shape_.num_queries, shape_.head_dim);
}

kernels::AttentionInputs AttentionCase::inputs() const {
  kernels::AttentionInputs inputs;
  inputs.query = const_view(kQuery);
  inputs.key = const_view(kKey);
  inputs.value = const_view(kValue);
  inputs.rule = shape_.rule;
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim));
  return inputs;
}

kernels::AttentionOutputs AttentionCase::outputs() const { return {view(kOut), lse_.data()}; }

kernels::AttentionBackwardInputs AttentionCase::backward_inputs() const {
  return {const_view(kGradOut), nullptr, const_view(kOut), lse_.data()};
}

kernels::AttentionGradients AttentionCase::gradients() const {
  return {view(kGradQuery), view(kGradKey), view(kGradValue), {}, {}, {}};
}

std::vector<double> AttentionCase::out() const { return values_of(const_view(kOut)); }

std::vector<std::vector<double>> AttentionCase::gradient_values() const {
  return {values_of(const_view(kGradQuery)), values_of(const_view(kGradKey)),
          values_of(const_view(kGradValue))};
}

}  // namespace paperlab::bench
