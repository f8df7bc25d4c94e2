// The fold kernel on all strings of even pairs, by instruction set, length and threads.
#include <benchmark/benchmark.h>

#include <cmath>

#include "bench/support/gate.h"
#include "kernels/one_layer_fold/one_layer_fold.h"
#include "paperlab/core/cpu_isa.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

bool passes_gate(FoldPlan& plan, const test::OneLayerInputs& inputs, const Executor& executor) {
  test::OneLayerInputs fold = inputs;
  test::OneLayerInputs reference = inputs;
  one_layer_fold(plan, fold.parameters(), fold.gradient(), executor);
  one_layer_fold_reference(plan.groups, reference.parameters(), reference.gradient());
  return bench::same_gradient(fold, reference);
}

void fold(benchmark::State& state, CpuIsa isa) {
  if (isa > detected_cpu_isa()) {
    state.SkipWithError("this CPU lacks the instruction set");
    return;
  }
  set_cpu_isa(cpu_isa_name(isa));
  const auto max_length = static_cast<int>(state.range(0));
  const ThreadPool pool(static_cast<int>(state.range(1)));
  FoldPlan plan(test::even_pairs_groups(max_length));
  test::OneLayerInputs inputs({.max_length = max_length});
  if (!passes_gate(plan, inputs, pool)) {
    state.SkipWithError("wrong gradient: not timed");
    return;
  }
  const OneLayerGradient gradient = inputs.gradient();
  for (auto _ : state) {
    one_layer_fold(plan, inputs.parameters(), gradient, pool);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * plan.num_strings);
  set_cpu_isa("auto");
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"L", "threads"});
  for (const int max_length : {6, 12, 16}) {
    benchmark->Args({max_length, 1});
  }
  benchmark->Args({16, 2});
  benchmark->UseRealTime();
}

BENCHMARK_CAPTURE(fold, generic, CpuIsa::kGeneric)->Apply(shapes);
BENCHMARK_CAPTURE(fold, avx2, CpuIsa::kAvx2)->Apply(shapes);
BENCHMARK_CAPTURE(fold, avx512, CpuIsa::kAvx512)->Apply(shapes);

}  // namespace
}  // namespace paperlab::kernels
