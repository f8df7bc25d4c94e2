// The loop kernel on listed strings of even pairs, by instruction set, length and threads.
#include <benchmark/benchmark.h>

#include "bench/support/gate.h"
#include "kernels/one_layer_loop/one_layer_loop.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

bool passes_gate(LoopPlan& plan, const test::OneLayerInputs& inputs, const Executor& executor) {
  test::OneLayerInputs loop = inputs;
  test::OneLayerInputs reference = inputs;
  one_layer_loop(plan, loop.parameters(), loop.gradient(), executor);
  one_layer_loop_reference(plan.groups, reference.parameters(), reference.gradient());
  return bench::same_gradient(loop, reference);
}

void loop(benchmark::State& state, CpuIsa isa) {
  if (isa > detected_cpu_isa()) {
    state.SkipWithError("this CPU lacks the instruction set");
    return;
  }
  set_cpu_isa(cpu_isa_name(isa));
  regular_language::TrainOptions options;
  options.max_length = static_cast<int>(state.range(0));
  const ThreadPool pool(static_cast<int>(state.range(1)));
  LoopPlan plan(regular_language::packed_strings(options));
  test::OneLayerInputs inputs({.max_length = options.max_length});
  if (!passes_gate(plan, inputs, pool)) {
    state.SkipWithError("wrong gradient: not timed");
    return;
  }
  const OneLayerGradient gradient = inputs.gradient();
  for (auto _ : state) {
    one_layer_loop(plan, inputs.parameters(), gradient, pool);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * plan.num_tokens);  // tokens
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

BENCHMARK_CAPTURE(loop, generic, CpuIsa::kGeneric)->Apply(shapes);
BENCHMARK_CAPTURE(loop, avx2, CpuIsa::kAvx2)->Apply(shapes);
BENCHMARK_CAPTURE(loop, avx512, CpuIsa::kAvx512)->Apply(shapes);

}  // namespace
}  // namespace paperlab::kernels
