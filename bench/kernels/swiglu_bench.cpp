// The gated activation, both passes: bytes per second of what must be read and written.
#include <benchmark/benchmark.h>

#include <vector>

#include "kernels/swiglu/swiglu.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {
namespace {

std::vector<float> matrix(const benchmark::State& state) {
  return std::vector<float>(static_cast<std::size_t>(state.range(0) * state.range(1)), 0.5F);
}

void forward(benchmark::State& state) {
  const std::int64_t width = state.range(1);
  const std::vector<float> gate = matrix(state);
  const std::vector<float> up = matrix(state);
  std::vector<float> y = matrix(state);
  for (auto _ : state) {
    swiglu({DType::kFloat32, state.range(0), width, {gate.data(), width}, {up.data(), width}},
           {y.data(), width}, serial_executor());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * width * 3 * 4);
}

void backward(benchmark::State& state) {
  const std::int64_t width = state.range(1);
  const std::vector<float> gate = matrix(state);
  const std::vector<float> up = matrix(state);
  const std::vector<float> grad = matrix(state);
  std::vector<float> grad_gate = matrix(state);
  std::vector<float> grad_up = matrix(state);
  for (auto _ : state) {
    swiglu_backward(
        {DType::kFloat32, state.range(0), width, {gate.data(), width}, {up.data(), width}},
        {grad.data(), width}, {grad_gate.data(), width}, {grad_up.data(), width},
        serial_executor());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * width * 5 * 4);
}

BENCHMARK(forward)->Args({1, 1536})->Args({512, 1536})->Args({512, 11008});
BENCHMARK(backward)->Args({512, 1536})->Args({512, 11008});

}  // namespace
}  // namespace paperlab::kernels
