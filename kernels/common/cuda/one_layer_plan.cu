#include <algorithm>
#include <string>
#include <vector>

#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/device_buffer.h"
#include "kernels/common/cuda/one_layer_block.h"
#include "kernels/common/cuda/one_layer_plan.h"

namespace paperlab::kernels {
namespace {

// One block a query (length, last token), in the order of embedding_index.
struct Queries {
  double* e;
  double* eu;
  int* is_wide;
};

__global__ void __launch_bounds__(kSumEntries)
    tables_kernel(OneLayerParameters parameters, Queries queries) {
  const int column = static_cast<int>(blockIdx.x);
  const int i = static_cast<int>(threadIdx.x);
  const int length = column / 2 + 1;
  const int query = column % 2;
  const double* w = parameters.w + column * 2 * static_cast<std::int64_t>(parameters.max_length);
  if (i < 2 * length) {
    const double e = table_entry(w, length, query, parameters.attention_scale, i);
    queries.e[column * kTableSize + i] = e;
    queries.eu[column * kTableSize + i] = e * parameters.u[i];
  }
  const double spread = table_spread(w, length, query, parameters.attention_scale);
  if (i == 0 && spread > kMaxSpread && spread < HUGE_VAL) {  // infinity shows in u as well
    queries.is_wide[column] = 1;
  }
}

__global__ void __launch_bounds__(kSumThreads)
    sum_tasks_kernel(OneLayerParameters parameters, int max_length, const Marginal* marginals,
                     const std::int64_t* places, const std::int64_t* first_place, Queries queries,
                     double* gradient_w, double* parts_of_u) {
  __shared__ QuerySums sums;
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  const int column = static_cast<int>(blockIdx.x);
  const bool is_used = column < 2 * max_length;
  const std::int64_t first = is_used ? first_place[column] : 0;
  const int count = is_used ? static_cast<int>(first_place[column + 1] - first) : 0;
  const int length = is_used ? column / 2 + 1 : 0;
  sum_query(team, sums, marginals, {places + first, count}, length,
            {queries.e + column * kTableSize, queries.eu + column * kTableSize}, parameters,
            gradient_w + column * 2 * static_cast<std::int64_t>(parameters.max_length),
            parts_of_u + column * kTableSize);
}

__global__ void __launch_bounds__(kBlockThreads)
    u_gradient_kernel(const double* parts_of_u, int max_length, int width, double* gradient_u) {
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kBlockThreads) {
    gradient_u[i] = sum_u_gradient(parts_of_u, max_length, i);
  }
}

// Block 0 moves u and counts the step, the others move w.
__global__ void __launch_bounds__(kBlockThreads)
    descend_kernel(DescentState state, const double* parts_of_u, int max_length) {
  const int width = 2 * state.max_length;
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x > 0) {
    const int i = static_cast<int>(blockIdx.x - 1) * kBlockThreads + thread;
    if (i < width * width) {
      state.w[i] -= state.control->w_step * state.gradient_w[i];
    }
    return;
  }
  int is_bad = 0;
  for (int i = thread; i < width; i += kBlockThreads) {
    const double u = state.u[i] - state.control->u_step * sum_u_gradient(parts_of_u, max_length, i);
    state.u[i] = u;
    is_bad |= isfinite(u) ? 0 : 1;
  }
  is_bad = __syncthreads_or(is_bad);
  if (thread == 0) {
    const std::int64_t step = ++state.control->num_steps;
    if (is_bad != 0 && state.control->first_not_finite < 0) {
      state.control->first_not_finite = step;
    }
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    sum_evaluations_kernel(const EvaluationSum* parts, int count, std::int64_t num_strings,
                           OneLayerEvaluation* out) {
  __shared__ EvaluationSum sums[kBlockThreads];
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  team.each([&](int thread, auto&) {
    EvaluationSum sum = empty_evaluation();
    for (int i = thread; i < count; i += kBlockThreads) {
      add_evaluation(parts[i], sum);
    }
    sums[thread] = sum;
  });
  add_up(team, sums);
  if (threadIdx.x == 0) {
    *out = {sums[0].loss, sums[0].min_margin, sums[0].num_correct, num_strings};
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------

void launch_u_gradient(const double* parts_of_u, int max_length, int width, double* gradient_u,
                       const Context& context) {
  u_gradient_kernel<<<1, kBlockThreads, 0, context.stream>>>(parts_of_u, max_length, width,
                                                             gradient_u);
  PAPERLAB_CUDA_LAUNCHED(u_gradient_kernel);
}

void launch_evaluation_sum(const EvaluationSum* parts, int count, std::int64_t num_strings,
                           OneLayerEvaluation* out, const Context& context) {
  sum_evaluations_kernel<<<1, kBlockThreads, 0, context.stream>>>(parts, count, num_strings, out);
  PAPERLAB_CUDA_LAUNCHED(sum_evaluations_kernel);
}

bool has_usable_gpu() {
  int count = 0;
  cudaFuncAttributes attributes{};
  const bool is_usable = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                         cudaFuncGetAttributes(&attributes, tables_kernel) == cudaSuccess;
  cudaGetLastError();  // a missing device is an answer, not an error of the next call
  return is_usable;
}

struct OneLayerPlanCuda::Memory {
  int max_length;
  int num_tasks;
  std::int64_t num_strings;
  DeviceBuffer<double> e = {};
  DeviceBuffer<double> eu = {};
  DeviceBuffer<int> is_wide = {};
  DeviceBuffer<double> parts_of_u = {};
  DeviceBuffer<Marginal> marginals = {};
  DeviceBuffer<EvaluationSum> evaluations = {};
  DeviceBuffer<std::int64_t> places = {};       // of the tasks' marginals, by query
  DeviceBuffer<std::int64_t> first_place = {};  // [2 max_length + 1]

  std::size_t num_columns() const { return 2 * static_cast<std::size_t>(max_length); }
  Queries queries() { return {e.data(), eu.data(), is_wide.data()}; }
};

OneLayerPlanCuda::OneLayerPlanCuda(std::span<const TaskPlace> tasks, std::size_t num_marginals,
                                   std::int64_t num_strings)
    : memory_(new Memory{0, static_cast<int>(tasks.size()), num_strings}) {
  for (const TaskPlace& task : tasks) {
    require<UnsupportedError>(
        task.length <= kMaxStringLength, "one_layer_cuda",
        "strings must have at most " + std::to_string(kMaxStringLength) + " tokens",
        std::to_string(task.length));
    memory_->max_length = std::max(memory_->max_length, task.length);
  }
  std::vector<std::int64_t> places;
  std::vector<std::int64_t> first_place = {0};
  for (int column = 0; column < 2 * memory_->max_length; ++column) {
    for (const TaskPlace& task : tasks) {
      if (embedding_index(task.length - 1, task.query) == column) {
        places.push_back(task.marginals);
      }
    }
    first_place.push_back(std::ssize(places));
  }
  const std::size_t table = memory_->num_columns() * kTableSize;
  memory_->e = DeviceBuffer<double>(table);
  memory_->eu = DeviceBuffer<double>(table);
  memory_->parts_of_u = DeviceBuffer<double>(table);
  memory_->is_wide = DeviceBuffer<int>(std::vector<int>(memory_->num_columns(), 0));
  memory_->marginals = DeviceBuffer<Marginal>(num_marginals);
  memory_->evaluations = DeviceBuffer<EvaluationSum>(tasks.size());
  memory_->places = DeviceBuffer<std::int64_t>(places);
  memory_->first_place = DeviceBuffer<std::int64_t>(first_place);
}

OneLayerPlanCuda::~OneLayerPlanCuda() = default;

int OneLayerPlanCuda::max_length() const { return memory_->max_length; }

void OneLayerPlanCuda::begin(const OneLayerParameters& parameters, const Context& context) {
  require<ValueError>(parameters.max_length >= max_length(), "one_layer_cuda",
                      "parameters.max_length must be at least " + std::to_string(max_length()),
                      std::to_string(parameters.max_length));
  tables_kernel<<<2 * max_length(), kSumEntries, 0, context.stream>>>(parameters,
                                                                      memory_->queries());
  PAPERLAB_CUDA_LAUNCHED(tables_kernel);
}

void OneLayerPlanCuda::sum_tasks(const OneLayerParameters& parameters, double* gradient_w,
                                 const Context& context) {
  sum_tasks_kernel<<<2 * parameters.max_length, kSumThreads, 0, context.stream>>>(
      parameters, max_length(), memory_->marginals.data(), memory_->places.data(),
      memory_->first_place.data(), memory_->queries(), gradient_w, memory_->parts_of_u.data());
  PAPERLAB_CUDA_LAUNCHED(sum_tasks_kernel);
}

void OneLayerPlanCuda::gradient(const OneLayerParameters& parameters,
                                const OneLayerGradient& gradient, const Context& context) {
  begin(parameters, context);
  launch_tasks({memory_->e.data(), memory_->eu.data()}, memory_->marginals.data(), context);
  sum_tasks(parameters, gradient.w, context);
  launch_u_gradient(memory_->parts_of_u.data(), max_length(), 2 * parameters.max_length, gradient.u,
                    context);
}

void OneLayerPlanCuda::step(const DescentState& state, const Context& context) {
  const OneLayerParameters parameters{state.max_length, state.attention_scale, state.u, state.w};
  begin(parameters, context);
  launch_tasks({memory_->e.data(), memory_->eu.data()}, memory_->marginals.data(), context);
  sum_tasks(parameters, state.gradient_w, context);
  const int width = 2 * state.max_length;
  const int num_blocks = 1 + (width * width + kBlockThreads - 1) / kBlockThreads;
  descend_kernel<<<num_blocks, kBlockThreads, 0, context.stream>>>(
      state, memory_->parts_of_u.data(), max_length());
  PAPERLAB_CUDA_LAUNCHED(descend_kernel);
}

void OneLayerPlanCuda::evaluate(const OneLayerParameters& parameters, OneLayerEvaluation* out,
                                const Context& context) {
  begin(parameters, context);
  launch_evaluations({memory_->e.data(), memory_->eu.data()}, memory_->evaluations.data(), context);
  launch_evaluation_sum(memory_->evaluations.data(), memory_->num_tasks, memory_->num_strings, out,
                        context);
}

void OneLayerPlanCuda::check_spread(const Context& context) {
  std::vector<int> is_wide(memory_->num_columns());
  memory_->is_wide.download(is_wide, context);
  PAPERLAB_CUDA_CHECK(
      cudaMemsetAsync(memory_->is_wide.data(), 0, is_wide.size() * sizeof(int), context.stream));
  PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(context.stream));
  require<UnsupportedError>(std::find(is_wide.begin(), is_wide.end(), 1) == is_wide.end(),
                            "one_layer_cuda",
                            "the logits of a query must lie within 600 attention scales",
                            "a wider spread, which the CPU kernels serve");
}

}  // namespace paperlab::kernels
