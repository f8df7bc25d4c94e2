// Normalization of rows with the residual's addition, both passes: bytes per second of what must be
// read and written.
#include <benchmark/benchmark.h>

#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {
namespace {

struct Tensors {
  Tensors(std::int64_t rows, std::int64_t width)
      : num_rows(rows),
        width(width),
        weight(static_cast<std::size_t>(width), 1.0F),
        grad_weight(weight),
        inverse_rms(static_cast<std::size_t>(rows), 1.0F) {
    x = residual = y = sum = std::vector<float>(static_cast<std::size_t>(rows * width), 0.5F);
  }

  std::int64_t num_rows;
  std::int64_t width;
  std::vector<float> weight;
  std::vector<float> grad_weight;
  std::vector<float> inverse_rms;
  std::vector<float> x;
  std::vector<float> residual;
  std::vector<float> y;
  std::vector<float> sum;
};

void set_bytes(benchmark::State& state, const Tensors& of, std::int64_t num_tensors) {
  state.SetBytesProcessed(state.iterations() * of.num_rows * of.width * num_tensors * 4);
}

void forward(benchmark::State& state) {
  Tensors of(state.range(0), state.range(1));
  for (auto _ : state) {
    rms_norm({DType::kFloat32, of.num_rows, of.width, 1e-5, of.x.data(), of.residual.data(),
              of.weight.data(), of.y.data(), of.sum.data(), of.inverse_rms.data()},
             serial_executor());
    benchmark::ClobberMemory();
  }
  set_bytes(state, of, 4);
}

void backward(benchmark::State& state) {
  Tensors of(state.range(0), state.range(1));
  for (auto _ : state) {
    rms_norm_backward(
        {DType::kFloat32, of.num_rows, of.width, of.x.data(), of.residual.data(), of.y.data(),
         of.weight.data(), of.inverse_rms.data(), of.sum.data(), of.grad_weight.data()},
        serial_executor());
    benchmark::ClobberMemory();
  }
  set_bytes(state, of, 4);
}

BENCHMARK(forward)->Args({512, 576})->Args({2048, 576})->Args({512, 4096});
BENCHMARK(backward)->Args({512, 576})->Args({2048, 576})->Args({512, 4096});

}  // namespace
}  // namespace paperlab::kernels
