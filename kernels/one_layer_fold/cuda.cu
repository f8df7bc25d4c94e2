#include "kernels/one_layer_fold/cuda.h"

#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/device_buffer.h"
#include "kernels/one_layer_fold/block.h"

namespace paperlab::kernels {
namespace {

struct Launch {
  const AffineGroup* groups;
  const FoldPlan::Task* tasks;
  const double* e;
  const double* eu;
};

// Groups are sorted by length: the longest tasks start first.
__device__ int task_number() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

__device__ FoldTask task_of_block(const Launch& launch) {
  const FoldPlan::Task& task = launch.tasks[task_number()];
  const AffineGroup& group = launch.groups[task.group];
  const int row = embedding_index(group.length - 1, group.query) * kTableSize;
  return fold_task(group, task.index, {launch.e + row, launch.eu + row});
}

__global__ void __launch_bounds__(kBlockThreads) fold_kernel(Launch launch, Marginal* out) {
  __shared__ FoldMemory memory;
  DeviceTeam<FoldRegisters> team{static_cast<int>(threadIdx.x), {}};
  fold_block(team, memory, task_of_block(launch), out + launch.tasks[task_number()].marginals);
}

__global__ void __launch_bounds__(kBlockThreads)
    fold_evaluate_kernel(Launch launch, EvaluationSum* out) {
  __shared__ FoldMemory memory;
  DeviceTeam<FoldRegisters> team{static_cast<int>(threadIdx.x), {}};
  fold_evaluate_block(team, memory, task_of_block(launch), out + task_number());
}

}  // namespace

// ---------------------------------------------------------------------------------------------

struct FoldPlanCuda::Strings {
  DeviceBuffer<AffineGroup> groups;
  DeviceBuffer<FoldPlan::Task> tasks;
};

namespace {

template <class TaskPlace>
std::vector<TaskPlace> places(const FoldPlan& plan) {
  std::vector<TaskPlace> all;
  for (const FoldPlan::Task& task : plan.tasks) {
    const AffineGroup& group = plan.groups[static_cast<std::size_t>(task.group)];
    all.push_back({group.length, group.query, static_cast<std::int64_t>(task.marginals)});
  }
  return all;
}

}  // namespace

FoldPlanCuda::FoldPlanCuda(const FoldPlan& plan)
    : OneLayerPlanCuda(places<TaskPlace>(plan), plan.marginals.size(), plan.num_strings),
      strings_(new Strings{DeviceBuffer<AffineGroup>(plan.groups),
                           DeviceBuffer<FoldPlan::Task>(plan.tasks)}) {}

FoldPlanCuda::~FoldPlanCuda() = default;

void FoldPlanCuda::launch_tasks(Tables tables, Marginal* out, const Context& context) {
  const auto num_tasks = static_cast<unsigned>(strings_->tasks.size());
  fold_kernel<<<num_tasks, kBlockThreads, 0, context.stream>>>(
      {strings_->groups.data(), strings_->tasks.data(), tables.e, tables.eu}, out);
  PAPERLAB_CUDA_LAUNCHED(fold_kernel);
}

void FoldPlanCuda::launch_evaluations(Tables tables, EvaluationSum* out, const Context& context) {
  const auto num_tasks = static_cast<unsigned>(strings_->tasks.size());
  fold_evaluate_kernel<<<num_tasks, kBlockThreads, 0, context.stream>>>(
      {strings_->groups.data(), strings_->tasks.data(), tables.e, tables.eu}, out);
  PAPERLAB_CUDA_LAUNCHED(fold_evaluate_kernel);
}

}  // namespace paperlab::kernels
