#include "kernels/one_layer_loop/cuda.h"

#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/device_buffer.h"
#include "kernels/one_layer_loop/block.h"

namespace paperlab::kernels {
namespace {

struct Launch {
  const LoopTask* tasks;
  const std::uint32_t* words;
  const double* e;
  const double* eu;
};

__device__ QueryTable table_of(const Launch& launch, const LoopTask& task) {
  const int row = embedding_index(task.length - 1, task.query) * kTableSize;
  return {launch.e + row, launch.eu + row};
}

__global__ void __launch_bounds__(kBlockThreads) loop_kernel(Launch launch, Marginal* out) {
  __shared__ LoopMemory memory;
  DeviceTeam<LoopRegisters> team{static_cast<int>(threadIdx.x), {}};
  const LoopTask task = launch.tasks[blockIdx.x];
  loop_block(team, memory, task, launch.words + task.first, table_of(launch, task),
             out + task.marginals);
}

__global__ void __launch_bounds__(kBlockThreads)
    loop_evaluate_kernel(Launch launch, EvaluationSum* out) {
  __shared__ LoopMemory memory;
  DeviceTeam<LoopRegisters> team{static_cast<int>(threadIdx.x), {}};
  const LoopTask task = launch.tasks[blockIdx.x];
  loop_evaluate_block(team, memory, task, launch.words + task.first, table_of(launch, task),
                      out + blockIdx.x);
}

}  // namespace

// ---------------------------------------------------------------------------------------------

struct LoopPlanCuda::Strings {
  DeviceBuffer<LoopTask> tasks;
  DeviceBuffer<std::uint32_t> words;
};

namespace {

template <class TaskPlace>
std::vector<TaskPlace> places(const LoopPlan& plan) {
  std::vector<TaskPlace> all;
  for (const LoopTask& task : loop_tasks(plan)) {
    all.push_back({task.length, task.query, task.marginals});
  }
  return all;
}

std::int64_t num_strings(const LoopPlan& plan) {
  std::int64_t total = 0;
  for (const PackedStrings& group : plan.groups) {
    total += group.num_strings;
  }
  return total;
}

}  // namespace

LoopPlanCuda::LoopPlanCuda(const LoopPlan& plan)
    : OneLayerPlanCuda(places<TaskPlace>(plan), plan.marginals.size(), num_strings(plan)),
      strings_(new Strings{DeviceBuffer<LoopTask>(loop_tasks(plan)),
                           DeviceBuffer<std::uint32_t>(loop_words(plan))}) {}

LoopPlanCuda::~LoopPlanCuda() = default;

void LoopPlanCuda::launch_tasks(Tables tables, Marginal* out, const Context& context) {
  const auto num_tasks = static_cast<unsigned>(strings_->tasks.size());
  loop_kernel<<<num_tasks, kBlockThreads, 0, context.stream>>>(
      {strings_->tasks.data(), strings_->words.data(), tables.e, tables.eu}, out);
  PAPERLAB_CUDA_LAUNCHED(loop_kernel);
}

void LoopPlanCuda::launch_evaluations(Tables tables, EvaluationSum* out, const Context& context) {
  const auto num_tasks = static_cast<unsigned>(strings_->tasks.size());
  loop_evaluate_kernel<<<num_tasks, kBlockThreads, 0, context.stream>>>(
      {strings_->tasks.data(), strings_->words.data(), tables.e, tables.eu}, out);
  PAPERLAB_CUDA_LAUNCHED(loop_evaluate_kernel);
}

}  // namespace paperlab::kernels
