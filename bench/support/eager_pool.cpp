// Pooling of groups from LibTorch's operators, for group_pool_bench.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <benchmark/benchmark.h>

#include <cmath>

namespace {

constexpr std::int64_t kGroup = 16;
constexpr std::int64_t kWidth = 128;

// State: tokens, query heads, key heads (repeated for the query heads that share one).
void eager(benchmark::State& state, at::ScalarType dtype) {
  at::set_num_threads(1);
  const at::NoGradGuard no_grad;
  const std::int64_t groups = state.range(0) / kGroup;
  const std::int64_t heads = state.range(1);
  const auto options = at::TensorOptions(dtype);
  const at::Tensor query = at::randn({heads, groups, kGroup, kWidth}, options);
  const at::Tensor key = at::randn({state.range(2), groups, kGroup, kWidth}, options);
  const at::Tensor value = at::randn({state.range(2), groups, kGroup, kWidth}, options);
  for (auto _ : state) {
    const at::Tensor k = key.repeat_interleave(heads / state.range(2), 0);
    const at::Tensor v = value.repeat_interleave(heads / state.range(2), 0);
    const at::Tensor logits = at::einsum("hcd,hcgd->hcg", {query.select(2, kGroup - 1), k});
    const at::Tensor weights = at::softmax(logits / std::sqrt(static_cast<double>(kWidth)), -1);
    at::Tensor core_key = at::einsum("hcg,hcgd->hcd", {weights, k});
    at::Tensor core_value = at::einsum("hcg,hcgd->hcd", {weights, v});
    benchmark::DoNotOptimize(core_key.data_ptr());
    benchmark::DoNotOptimize(core_value.data_ptr());
  }
}

void shapes(benchmark::internal::Benchmark* of) {
  of->Args({16, 8, 8})->Args({1024, 2, 2})->Args({32768, 2, 2})->Args({32768, 8, 2});
}

BENCHMARK_CAPTURE(eager, float32, at::kFloat)->Apply(shapes);
BENCHMARK_CAPTURE(eager, bfloat16, at::kBFloat16)->Apply(shapes);

}  // namespace
