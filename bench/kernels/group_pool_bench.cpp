// Pooling of groups of 16 tokens, one batch row of H query heads over G key heads [T, 128]: bytes
// of what is read and written a second, beside a copy of as many bytes as K and V. `eager` is the
// same from LibTorch's operators.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/group_pool/group_pool.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {
namespace {

constexpr std::int64_t kGroup = 16;
constexpr std::int64_t kWidth = 128;

// Tensors [1, heads, tokens, kWidth].
class Tensors {
 public:
  explicit Tensors(const benchmark::State& state, DType dtype)
      : tokens_(state.range(0)),
        heads_(state.range(1)),
        key_heads_(state.range(2)),
        dtype_(dtype),
        query_(bytes(heads_, tokens_), 0x3D),
        key_(bytes(key_heads_, tokens_), 0x3D),
        value_(key_),
        core_key_(bytes(heads_, tokens_ / kGroup), 0x3D),
        core_value_(core_key_),
        grad_query_(query_),
        grad_key_(key_),
        grad_value_(key_) {}

  GroupPoolInputs inputs() {
    GroupPoolInputs in;
    in.query = view<const void>(query_, heads_, tokens_);
    in.key = view<const void>(key_, key_heads_, tokens_);
    in.value = view<const void>(value_, key_heads_, tokens_);
    in.group = kGroup;
    in.scale = 1.0 / std::sqrt(static_cast<double>(kWidth));
    return in;
  }
  GroupPoolOutputs outputs() {
    return {view<void>(core_key_, heads_, tokens_ / kGroup),
            view<void>(core_value_, heads_, tokens_ / kGroup)};
  }
  GroupPoolGradients gradients() {
    return {view<const void>(core_key_, heads_, tokens_ / kGroup),
            view<const void>(core_value_, heads_, tokens_ / kGroup),
            view<void>(grad_query_, heads_, tokens_), view<void>(grad_key_, key_heads_, tokens_),
            view<void>(grad_value_, key_heads_, tokens_)};
  }

  std::int64_t forward_bytes() const {
    return static_cast<std::int64_t>(2 * key_.size() + 2 * core_key_.size() +
                                     query_.size() / kGroup);
  }
  std::int64_t backward_bytes() const {
    return forward_bytes() + static_cast<std::int64_t>(2 * key_.size() + query_.size());
  }
  std::vector<unsigned char>& key() { return key_; }
  std::vector<unsigned char>& grad_key() { return grad_key_; }

 private:
  std::size_t bytes(std::int64_t heads, std::int64_t rows) const {
    return static_cast<std::size_t>(heads * rows * kWidth * (dtype_ == DType::kBFloat16 ? 2 : 4));
  }
  template <class Void>
  BasicTensorView<Void> view(std::vector<unsigned char>& data, std::int64_t heads,
                             std::int64_t rows) const {
    return {data.data(),
            dtype_,
            {1, heads, rows, kWidth},
            {heads * rows * kWidth, rows * kWidth, kWidth, 1}};
  }

  std::int64_t tokens_;
  std::int64_t heads_;
  std::int64_t key_heads_;
  DType dtype_;
  std::vector<unsigned char> query_;
  std::vector<unsigned char> key_;
  std::vector<unsigned char> value_;
  std::vector<unsigned char> core_key_;
  std::vector<unsigned char> core_value_;
  std::vector<unsigned char> grad_query_;
  std::vector<unsigned char> grad_key_;
  std::vector<unsigned char> grad_value_;
};

void pool(benchmark::State& state, DType dtype) {
  Tensors tensors(state, dtype);
  for (auto _ : state) {
    group_pool(tensors.inputs(), tensors.outputs(), serial_executor());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * tensors.forward_bytes());
}

void pool_backward(benchmark::State& state, DType dtype) {
  Tensors tensors(state, dtype);
  for (auto _ : state) {
    group_pool_backward(tensors.inputs(), tensors.gradients(), serial_executor());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * tensors.backward_bytes());
}

void copy(benchmark::State& state, DType dtype) {
  Tensors tensors(state, dtype);
  for (auto _ : state) {
    std::memcpy(tensors.grad_key().data(), tensors.key().data(), tensors.key().size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(2 * tensors.key().size()));
}

// A decode step's group, a prompt that lies in the caches, one that does not; grouped heads.
void shapes(benchmark::internal::Benchmark* of) {
  of->Args({16, 8, 8})->Args({1024, 2, 2})->Args({32768, 2, 2})->Args({32768, 8, 2});
}

BENCHMARK_CAPTURE(pool, float32, DType::kFloat32)->Apply(shapes);
BENCHMARK_CAPTURE(pool_backward, float32, DType::kFloat32)->Apply(shapes);
BENCHMARK_CAPTURE(copy, float32, DType::kFloat32)->Apply(shapes);
BENCHMARK_CAPTURE(pool, bfloat16, DType::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(pool_backward, bfloat16, DType::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(copy, bfloat16, DType::kBFloat16)->Apply(shapes);

}  // namespace
}  // namespace paperlab::kernels
