// The baseline of rope_bench: the rotation as a model's source writes it, in eager LibTorch on one
// thread, with tables as wide as a head: x cos + rotate_half(x) sin.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <benchmark/benchmark.h>

namespace paperlab::bench {
namespace {

void eager(benchmark::State& state, at::ScalarType dtype) {
  const at::NoGradGuard guard;
  at::set_num_threads(1);
  const std::int64_t width = state.range(2);
  const at::Tensor x = at::full({1, state.range(0), state.range(1), width}, 0.5, dtype);
  const at::Tensor cos = at::full({1, state.range(0), 1, width}, 0.6, dtype);
  const at::Tensor sin = at::full({1, state.range(0), 1, width}, 0.8, dtype);
  for (auto _ : state) {
    const at::Tensor low = x.narrow(3, 0, width / 2);
    const at::Tensor high = x.narrow(3, width / 2, width / 2);
    benchmark::DoNotOptimize(x * cos + at::cat({-high, low}, 3) * sin);
  }
  // What the kernel moves, so that rates compare.
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(2 * x.nbytes()) +
                          state.iterations() * state.range(0) * width * 4);
}

void shapes(benchmark::internal::Benchmark* of) {
  of->Args({1, 9, 64})->Args({512, 9, 64})->Args({2048, 32, 128});
}

BENCHMARK_CAPTURE(eager, float32, at::kFloat)->Apply(shapes);
BENCHMARK_CAPTURE(eager, bfloat16, at::kBFloat16)->Apply(shapes);

}  // namespace
}  // namespace paperlab::bench
