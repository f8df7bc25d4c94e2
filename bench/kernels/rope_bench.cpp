// The rotation of heads [1, T, H, D], R = D, beside a copy of the same bytes: what is read and
// written, tables included, a second. `eager` is the form of a model's source, in LibTorch.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "kernels/rope/rope.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {
namespace {

struct Tensors {
  Tensors(const benchmark::State& state, std::int64_t word)
      : length(state.range(0)),
        heads(state.range(1)),
        width(state.range(2)),
        bytes(static_cast<std::size_t>(length * heads * width * word)),
        x(bytes, 0x3D),
        out(bytes, 0x3D),
        cos(static_cast<std::size_t>(length * width / 2), 0.6F),
        sin(cos.size(), 0.8F) {}

  Rope problem(DType dtype) const {
    const std::int64_t of_position = heads * width;
    return {
        {x.data(), dtype, {1, length, heads, width}, {length * of_position, of_position, width, 1}},
        width / 2,
        1,
        cos.data(),
        sin.data(),
        false};
  }
  std::int64_t traffic() const {
    return static_cast<std::int64_t>(2 * bytes + 2 * cos.size() * sizeof(float));
  }

  std::int64_t length;
  std::int64_t heads;
  std::int64_t width;
  std::size_t bytes;
  std::vector<unsigned char> x;
  std::vector<unsigned char> out;
  std::vector<float> cos;
  std::vector<float> sin;
};

void rotate(benchmark::State& state, DType dtype) {
  Tensors tensors(state, dtype == DType::kBFloat16 ? 2 : 4);
  for (auto _ : state) {
    rope(tensors.problem(dtype), tensors.out.data(), serial_executor());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * tensors.traffic());
}

void copy(benchmark::State& state, std::int64_t word) {
  Tensors tensors(state, word);
  for (auto _ : state) {
    std::memcpy(tensors.out.data(), tensors.x.data(), tensors.bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(2 * tensors.bytes));
}

void shapes(benchmark::internal::Benchmark* of) {
  of->Args({1, 9, 64})->Args({512, 9, 64})->Args({2048, 32, 128});
}

BENCHMARK_CAPTURE(rotate, float32, DType::kFloat32)->Apply(shapes);
BENCHMARK_CAPTURE(copy, float32, 4)->Apply(shapes);
BENCHMARK_CAPTURE(rotate, bfloat16, DType::kBFloat16)->Apply(shapes);
BENCHMARK_CAPTURE(copy, bfloat16, 2)->Apply(shapes);

}  // namespace
}  // namespace paperlab::kernels
