#include "tests/support/attention_tensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "kernels/common/number.h"
#include "paperlab/core/rng.h"

namespace paperlab::test {
namespace {

using kernels::DType;

constexpr std::size_t kAlignment = 64;
constexpr std::byte kNanByte{0xFF};
constexpr std::int64_t kNumGuards = 64;  // elements

std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kFloat64:
      break;
  }
  return 8;
}

std::array<std::int64_t, 4> strides(const std::array<std::int64_t, 4>& size,
                                    AttentionLayout layout) {
  const auto [batch, heads, rows, width] = size;
  switch (layout) {
    case AttentionLayout::kBTHD:
      return {rows * heads * width, width, heads * width, 1};
    case AttentionLayout::kPadded: {
      const std::int64_t row = width + 3;
      const std::int64_t head = rows * row + 5;
      return {heads * head + 7, head, row, 1};
    }
    case AttentionLayout::kSpaced: {
      const std::int64_t row = width + 16;
      const std::int64_t head = rows * row + 8;
      return {heads * head + 24, head, row, 1};
    }
    case AttentionLayout::kShared:
      return {0, 0, width, 1};
    case AttentionLayout::kBHTD:
      break;
  }
  return {heads * rows * width, rows * width, width, 1};
}

// Elements from the first to the last, both included.
std::int64_t extent(const std::array<std::int64_t, 4>& size,
                    const std::array<std::int64_t, 4>& stride) {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    if (size[i] == 0) {
      return 0;
    }
    last += (size[i] - 1) * stride[i];
  }
  return last + 1;
}

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float widened(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

void fill_with_normals(GuardedTensor& tensor, std::uint64_t seed, std::uint64_t stream,
                       double deviation) {
  if (tensor.is_absent()) {
    return;
  }
  std::vector<double> normals =
      philox_normals(seed, stream, static_cast<std::uint64_t>(tensor.num_elements()));
  for (double& x : normals) {
    x *= deviation;
  }
  tensor.set_values(normals);
}

// Keys and values outside a batch row's range become NaN.
void hide_keys(AttentionTensors& of) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t i = 0; i < of.key.num_elements(); ++i) {
    const auto [b, h, n, d] = of.key.index_of(i);
    const std::int64_t position = of.of.rule.num_past + n;
    if (position < of.start(b) || position >= of.end(b)) {
      of.key.set(b, h, n, d, kNan);
      of.value.set(b, h, n, d, kNan);
    }
  }
}

// Positions. The first half or the second half loses some; batch row 1 has all, the next one none.
std::vector<std::int64_t> random_ends(const AttentionCase& of, bool is_start) {
  std::vector<std::int64_t> ends(static_cast<std::size_t>(of.batch));
  for (std::size_t b = 0; b < ends.size(); ++b) {
    const double share = philox_uniform(of.seed, /*stream=*/50 + (is_start ? 1 : 0), b);
    const std::int64_t all = of.rule.num_past + of.num_keys;
    const double from_edge = static_cast<double>(all) * 0.5 * share;
    ends[b] = std::lround(is_start ? from_edge : static_cast<double>(all) - from_edge);
    if (b % 3 == 1) {
      ends[b] = is_start ? 0 : all;
    } else if (b % 3 == 2) {
      ends[b] = is_start ? all : 0;
    }
  }
  return ends;
}

}  // namespace

float round_to_bfloat16(float x) {
  if (std::isnan(x)) {
    return x;
  }
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) & 0xFFFF0000U);
}

void GuardedTensor::Free::operator()(std::byte* bytes) const {
  ::operator delete[](bytes, std::align_val_t(kAlignment));
}

GuardedTensor::GuardedTensor(DType dtype, std::array<std::int64_t, 4> size, AttentionLayout layout,
                             std::int64_t offset, Use use)
    : dtype_(dtype), size_(size), stride_(strides(size, layout)) {
  const std::int64_t guards = use == Use::kOutput ? kNumGuards : 0;
  first_ = (guards + offset) * element_bytes(dtype);
  num_bytes_ = first_ + (extent(size_, stride_) + guards) * element_bytes(dtype);
  bytes_.reset(static_cast<std::byte*>(
      ::operator new[](static_cast<std::size_t>(num_bytes_), std::align_val_t(kAlignment))));
  fill_with_nan();
}

kernels::ConstTensorView GuardedTensor::view() const {
  if (is_absent()) {
    return {nullptr, dtype_};
  }
  kernels::ConstTensorView view{bytes_.get() + first_, dtype_};
  std::copy(size_.begin(), size_.end(), view.size);
  std::copy(stride_.begin(), stride_.end(), view.stride);
  return view;
}

kernels::TensorView GuardedTensor::view() {
  if (is_absent()) {
    return {nullptr, dtype_};
  }
  kernels::TensorView view{bytes_.get() + first_, dtype_};
  std::copy(size_.begin(), size_.end(), view.size);
  std::copy(stride_.begin(), stride_.end(), view.stride);
  return view;
}

std::byte* GuardedTensor::element(std::int64_t b, std::int64_t h, std::int64_t t,
                                  std::int64_t d) const {
  const std::int64_t at = b * stride_[0] + h * stride_[1] + t * stride_[2] + d * stride_[3];
  return bytes_.get() + first_ + at * element_bytes(dtype_);
}

double GuardedTensor::get(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
  const std::byte* from = element(b, h, t, d);
  switch (dtype_) {
    case DType::kFloat32:
      return read<float>(from);
    case DType::kBFloat16:
      return widened(read<std::uint16_t>(from));
    case DType::kFloat16:
      return kernels::from_float16({read<std::uint16_t>(from)});
    case DType::kFloat64:
      break;
  }
  return read<double>(from);
}

void GuardedTensor::set(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d,
                        double value) {
  std::byte* to = element(b, h, t, d);
  const auto narrow = static_cast<float>(value);
  switch (dtype_) {
    case DType::kFloat32:
      std::memcpy(to, &narrow, sizeof(narrow));
      return;
    case DType::kBFloat16: {
      const auto bits = std::bit_cast<std::uint32_t>(round_to_bfloat16(narrow)) >> 16U;
      const auto half = static_cast<std::uint16_t>(bits);
      std::memcpy(to, &half, sizeof(half));
      return;
    }
    case DType::kFloat16: {
      const kernels::Float16 half = kernels::to_float16(narrow);
      std::memcpy(to, &half, sizeof(half));
      return;
    }
    case DType::kFloat64:
      break;
  }
  std::memcpy(to, &value, sizeof(value));
}

std::array<std::int64_t, 4> GuardedTensor::index_of(std::int64_t element) const {
  std::array<std::int64_t, 4> index{};
  for (std::size_t i = 4; i-- > 0;) {
    index[i] = element % size_[i];
    element /= size_[i];
  }
  return index;
}

std::vector<double> GuardedTensor::values() const {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(num_elements()));
  for (std::int64_t i = 0; i < num_elements(); ++i) {
    const auto [b, h, t, d] = index_of(i);
    values.push_back(get(b, h, t, d));
  }
  return values;
}

void GuardedTensor::set_values(const std::vector<double>& values) {
  for (std::int64_t i = 0; i < num_elements(); ++i) {
    const auto [b, h, t, d] = index_of(i);
    set(b, h, t, d, values[static_cast<std::size_t>(i)]);
  }
}

void GuardedTensor::fill_with_nan() {
  std::fill(bytes_.get(), bytes_.get() + num_bytes_, kNanByte);
}

std::vector<std::byte> GuardedTensor::all_bytes() const {
  return {bytes_.get(), bytes_.get() + num_bytes_};
}

bool GuardedTensor::has_untouched_gaps() const {
  std::vector<std::byte> bytes = all_bytes();
  for (std::int64_t i = 0; i < num_elements(); ++i) {
    const auto [b, h, t, d] = index_of(i);
    const std::ptrdiff_t at = element(b, h, t, d) - bytes_.get();
    std::fill_n(bytes.begin() + at, element_bytes(dtype_), kNanByte);
  }
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == kNanByte; });
}

AttentionTensors::AttentionTensors(const AttentionCase& of) : of(of) {
  using Size = std::array<std::int64_t, 4>;
  const Size queries = {of.batch, of.num_heads, of.num_queries, of.head_dim};
  const Size keys = {of.batch, of.num_kv_heads, of.num_keys, of.head_dim};
  const Size prefix = {of.batch, of.num_prefix_heads, num_prefix_entries(of), of.head_dim};
  const Size rows = {of.batch, of.num_heads, of.num_queries, 1};
  const DType statistics = of.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  using Use = GuardedTensor::Use;
  const AttentionLayout of_rows =
      of.layout == AttentionLayout::kShared ? AttentionLayout::kBHTD : of.layout;
  const auto make = [&](const Size& size, AttentionLayout layout, Use use) {
    return GuardedTensor(of.dtype, size, layout, of.offset, use);
  };
  const auto shared = [&](const Size& size) { return make(size, of.layout, Use::kInput); };
  const auto input = [&](const Size& size) { return make(size, of_rows, Use::kInput); };
  const auto output = [&](const Size& size) { return make(size, of_rows, Use::kOutput); };
  query = input(queries);
  key = shared(keys);
  value = shared(keys);
  grad_out = input(queries);
  out = output(queries);
  query_gradient = output(queries);
  key_gradient = output(keys);
  value_gradient = output(keys);
  if (of.num_prefix_heads > 0) {
    prefix_key = shared(prefix);
    prefix_value = shared(prefix);
    prefix_key_gradient = output(prefix);
    prefix_value_gradient = output(prefix);
    if (of.has_prefix_query) {
      prefix_query = input(queries);
      prefix_query_gradient = output(queries);
    }
  }
  lse = GuardedTensor(statistics, rows, AttentionLayout::kBHTD, of.offset,
                      GuardedTensor::Use::kOutput);
  if (of.has_grad_lse) {
    grad_lse = GuardedTensor(statistics, rows, AttentionLayout::kBHTD, of.offset,
                             GuardedTensor::Use::kInput);
  }
  std::uint64_t stream = 0;
  for (GuardedTensor* tensor : {&query, &key, &prefix_query, &prefix_key}) {
    fill_with_normals(*tensor, of.seed, stream++, of.magnitude);
  }
  for (GuardedTensor* tensor : {&value, &prefix_value, &grad_out, &grad_lse}) {
    fill_with_normals(*tensor, of.seed, stream++, 1.0);
  }
  if (of.ranges == KeyRanges::kLeft || of.ranges == KeyRanges::kBoth) {
    key_start = random_ends(of, /*is_start=*/true);
  }
  if (of.ranges == KeyRanges::kRight || of.ranges == KeyRanges::kBoth) {
    key_end = random_ends(of, /*is_start=*/false);
  }
  hide_keys(*this);
}

std::int64_t AttentionTensors::start(std::int64_t b) const {
  return key_start.empty() ? 0 : key_start[static_cast<std::size_t>(b)];
}

std::int64_t AttentionTensors::end(std::int64_t b) const {
  return key_end.empty() ? of.rule.num_past + of.num_keys : key_end[static_cast<std::size_t>(b)];
}

kernels::AttentionInputs AttentionTensors::inputs() const {
  kernels::AttentionInputs inputs;
  inputs.query = query.view();
  inputs.key = key.view();
  inputs.value = value.view();
  inputs.prefix_query = prefix_query.view();
  inputs.prefix_key = prefix_key.view();
  inputs.prefix_value = prefix_value.view();
  inputs.key_start = key_start.empty() ? nullptr : key_start.data();
  inputs.key_end = key_end.empty() ? nullptr : key_end.data();
  inputs.rule = of.rule;
  inputs.scale = scale_of(of);
  return inputs;
}

kernels::AttentionOutputs AttentionTensors::outputs() {
  out.fill_with_nan();
  lse.fill_with_nan();
  return {out.view(), lse.view().data};
}

kernels::AttentionBackwardInputs AttentionTensors::backward_inputs() const {
  return {grad_out.view(), grad_lse.view().data, out.view(), lse.view().data};
}

kernels::AttentionGradients AttentionTensors::gradients() {
  for (GuardedTensor* tensor :
       {&query_gradient, &key_gradient, &value_gradient, &prefix_query_gradient,
        &prefix_key_gradient, &prefix_value_gradient}) {
    if (!tensor->is_absent()) {
      tensor->fill_with_nan();
    }
  }
  return {query_gradient.view(),        key_gradient.view(),        value_gradient.view(),
          prefix_query_gradient.view(), prefix_key_gradient.view(), prefix_value_gradient.view()};
}

void AttentionTensors::run_forward(const Executor& executor) {
  kernels::attention(inputs(), outputs(), executor);
}

void AttentionTensors::run_backward(const Executor& executor) {
  kernels::attention_backward(inputs(), backward_inputs(), gradients(), executor);
}

std::vector<std::byte> AttentionTensors::input_bytes() const {
  std::vector<std::byte> bytes;
  for (const GuardedTensor* tensor :
       {&query, &key, &value, &prefix_query, &prefix_key, &prefix_value, &grad_out, &grad_lse}) {
    const std::vector<std::byte> more = tensor->all_bytes();
    bytes.insert(bytes.end(), more.begin(), more.end());
  }
  return bytes;
}

std::vector<const GuardedTensor*> AttentionTensors::forward_results() const { return {&out, &lse}; }

std::vector<const GuardedTensor*> AttentionTensors::backward_results() const {
  std::vector<const GuardedTensor*> results = {&query_gradient,      &key_gradient,
                                               &value_gradient,      &prefix_query_gradient,
                                               &prefix_key_gradient, &prefix_value_gradient};
  std::erase_if(results, [](const GuardedTensor* tensor) { return tensor->is_absent(); });
  return results;
}

}  // namespace paperlab::test
