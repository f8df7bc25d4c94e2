#include "kernels/one_layer_fold/one_layer_fold.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "kernels/common/dispatch.h"
#include "kernels/common/one_layer_reference.h"
#include "kernels/one_layer_fold/cpu.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

// Below this many strings a step is shorter than waking a second thread.
constexpr std::int64_t kSerialStrings = 1 << 13;
constexpr std::size_t kScratchPerWorker = std::size_t{4} << kMaxColumnBits;

FoldCpu cpu() { return select_isa(generic::fold_cpu, avx2::fold_cpu, avx512::fold_cpu)(); }

std::vector<AffineGroup> validated(std::vector<AffineGroup> groups) {
  require<ValueError>(!groups.empty(), "one_layer_fold", "groups must not be empty", "none");
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::string name = "group " + std::to_string(g);
    require<ValueError>(groups[g].length >= 1 && groups[g].length <= kMaxStringLength,
                        "one_layer_fold",
                        "length must be in 1.." + std::to_string(kMaxStringLength),
                        std::to_string(groups[g].length) + " in " + name);
    require<ValueError>(is_foldable(groups[g]), "one_layer_fold",
                        "each position must read rows alone or columns alone", name);
    require<ValueError>(g == 0 || groups[g - 1].length <= groups[g].length, "one_layer_fold",
                        "groups must be sorted by length", name);
  }
  return groups;
}

RowRange rows_of(const AffineGroup& group, int task) {
  return group.num_bits == 0 ? RowRange{0, 1} : task_rows(fold_shape(group.num_bits), task);
}

// Calls body(task number, task, group, scratch) for every task, the largest groups first.
template <class F>
void for_each_task(FoldPlan& plan, const Executor& executor, F body) {
  const Executor& chosen = plan.num_strings < kSerialStrings ? serial_executor() : executor;
  const auto needed = kScratchPerWorker * static_cast<std::size_t>(chosen.num_workers());
  plan.scratch.resize(std::max(plan.scratch.size(), needed));
  parallel_for(chosen, std::ssize(plan.tasks), [&](std::int64_t i, int worker) {
    const auto number = static_cast<std::size_t>(plan.longest_first[static_cast<std::size_t>(i)]);
    const FoldPlan::Task& task = plan.tasks[number];
    body(number, task, plan.groups[static_cast<std::size_t>(task.group)],
         plan.scratch.data() + static_cast<std::size_t>(worker) * kScratchPerWorker);
  });
}

}  // namespace

FoldPlan::FoldPlan(std::vector<AffineGroup> strings)
    : groups(validated(std::move(strings))), workspace(groups.back().length) {
  std::size_t num_marginals = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    num_strings += std::int64_t{1} << static_cast<unsigned>(groups[g].num_bits);
    for (int index = 0; index < num_tasks(groups[g].num_bits); ++index) {
      tasks.push_back({static_cast<int>(g), index, num_marginals});
      num_marginals += 2 * static_cast<std::size_t>(groups[g].length);
    }
  }
  tasks.shrink_to_fit();
  longest_first.resize(tasks.size());
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::stable_sort(longest_first.begin(), longest_first.end(), [this](int a, int b) {
    const auto bits = [this](int task) {
      return groups[static_cast<std::size_t>(tasks[static_cast<std::size_t>(task)].group)].num_bits;
    };
    return bits(a) > bits(b);
  });
  marginals.resize(num_marginals);
  evaluations.resize(tasks.size());
  scratch.resize(kScratchPerWorker);
}

std::size_t FoldPlan::num_bytes() const {
  return groups.capacity() * sizeof(AffineGroup) + tasks.capacity() * sizeof(Task) +
         longest_first.capacity() * sizeof(int) + marginals.capacity() * sizeof(Marginal) +
         evaluations.capacity() * sizeof(OneLayerEvaluation) + scratch.capacity() * sizeof(double) +
         workspace.num_bytes();
}

void one_layer_fold(FoldPlan& plan, const OneLayerParameters& parameters,
                    const OneLayerGradient& gradient, const Executor& executor) {
  const FoldCpu kernel = cpu();
  if (!plan.workspace.begin(parameters, kernel.query_table)) {
    one_layer_fold_reference(plan.groups, parameters, gradient);
    return;
  }
  for_each_task(
      plan, executor,
      [&](std::size_t, const FoldPlan::Task& task, const AffineGroup& group, double* scratch) {
        kernel.task(group, rows_of(group, task.index),
                    plan.workspace.table(group.length, group.query), scratch,
                    plan.marginals.data() + task.marginals);
      });
  for (const FoldPlan::Task& task : plan.tasks) {
    const AffineGroup& group = plan.groups[static_cast<std::size_t>(task.group)];
    plan.workspace.add(
        group.length, group.query,
        {plan.marginals.data() + task.marginals, 2 * static_cast<std::size_t>(group.length)});
  }
  plan.workspace.finish(parameters, gradient);
}

OneLayerEvaluation one_layer_fold_evaluate(FoldPlan& plan, const OneLayerParameters& parameters,
                                           const Executor& executor) {
  const FoldCpu kernel = cpu();
  if (!plan.workspace.begin(parameters, kernel.query_table)) {
    return one_layer_fold_reference(plan.groups, parameters, UnusedGradient(parameters).view());
  }
  for_each_task(plan, executor,
                [&](std::size_t number, const FoldPlan::Task& task, const AffineGroup& group,
                    double* scratch) {
                  plan.evaluations[number] = no_strings();
                  kernel.evaluate(group, rows_of(group, task.index),
                                  plan.workspace.table(group.length, group.query), scratch,
                                  plan.evaluations[number]);
                });
  return merged(plan.evaluations);
}

}  // namespace paperlab::kernels
