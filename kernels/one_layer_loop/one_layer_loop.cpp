#include "kernels/one_layer_loop/one_layer_loop.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/common/dispatch.h"
#include "kernels/common/one_layer_reference.h"
#include "kernels/one_layer_loop/cpu.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr std::int64_t kTaskBlocks = 1024;
// Below this many tokens a step is shorter than waking a second thread.
constexpr std::int64_t kSerialTokens = 1 << 15;

LoopCpu cpu() { return select_isa(generic::loop_cpu, avx2::loop_cpu, avx512::loop_cpu)(); }

std::int64_t num_blocks(const PackedStrings& strings) {
  return (strings.num_strings + kStringsPerBlock - 1) / kStringsPerBlock;
}

std::vector<PackedStrings> validated(std::vector<PackedStrings> groups) {
  require<ValueError>(!groups.empty(), "one_layer_loop", "strings must not be empty", "none");
  for (const PackedStrings& group : groups) {
    require<ValueError>(
        group.length >= 1 && group.num_strings >= 1, "one_layer_loop",
        "every group must hold strings of at least one token",
        std::to_string(group.num_strings) + " of length " + std::to_string(group.length));
  }
  return groups;
}

int longest(const std::vector<PackedStrings>& groups) {
  return std::max_element(groups.begin(), groups.end(),
                          [](const auto& a, const auto& b) { return a.length < b.length; })
      ->length;
}

std::size_t scratch_per_worker(int max_length) {
  return static_cast<std::size_t>(max_length) * 4 * kStringsPerBlock;
}

StringBlocks blocks_of(const PackedStrings& group, const LoopPlan::Task& task) {
  const bool has_end = task.end_block == num_blocks(group);
  const int rest = static_cast<int>((group.num_strings - 1) % kStringsPerBlock) + 1;
  return {group.length,
          group.query,
          group.weight,
          task.end_block - task.first_block,
          has_end ? rest : kStringsPerBlock,
          group.tokens.data() + task.first_block * (group.length - 1),
          group.negative.data() + task.first_block};
}

// Calls body(task number, task, group, worker) for every task.
template <class F>
void for_each_task(LoopPlan& plan, const Executor& executor, F body) {
  const Executor& chosen = plan.num_tokens < kSerialTokens ? serial_executor() : executor;
  const std::size_t needed =
      scratch_per_worker(longest(plan.groups)) * static_cast<std::size_t>(chosen.num_workers());
  plan.scratch.resize(std::max(plan.scratch.size(), needed));
  parallel_for(chosen, std::ssize(plan.tasks), [&](std::int64_t i, int worker) {
    const auto number = static_cast<std::size_t>(i);
    const LoopPlan::Task& task = plan.tasks[number];
    body(number, task, plan.groups[static_cast<std::size_t>(task.group)],
         static_cast<std::size_t>(worker));
  });
}

}  // namespace

PackedStrings pack_strings(std::span<const std::uint8_t> tokens,
                           std::span<const std::int8_t> labels, int length, int query,
                           double weight) {
  PackedStrings packed{length, query, weight, std::ssize(labels), {}, {}};
  const auto positions = static_cast<std::size_t>(length - 1);
  const auto blocks = static_cast<std::size_t>(num_blocks(packed));
  packed.tokens.assign(blocks * positions, 0);
  packed.negative.assign(blocks, 0);
  for (std::size_t n = 0; n < labels.size(); ++n) {
    const std::size_t block = n / kStringsPerBlock;
    const auto bit = static_cast<std::uint8_t>(1U << (n % kStringsPerBlock));
    for (std::size_t l = 0; l < positions; ++l) {
      if (tokens[n * (positions + 1) + l] != 0) {
        packed.tokens[block * positions + l] |= bit;
      }
    }
    if (labels[n] < 0) {
      packed.negative[block] |= bit;
    }
  }
  return packed;
}

LoopPlan::LoopPlan(std::vector<PackedStrings> strings)
    : groups(validated(std::move(strings))), workspace(longest(groups)) {
  std::size_t num_marginals = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    num_tokens += groups[g].num_strings * groups[g].length;
    const std::int64_t blocks = num_blocks(groups[g]);
    for (std::int64_t first = 0; first < blocks; first += kTaskBlocks) {
      const std::int64_t end = std::min(first + kTaskBlocks, blocks);
      tasks.push_back({static_cast<int>(g), first, end, num_marginals});
      num_marginals += 2 * static_cast<std::size_t>(groups[g].length);
    }
  }
  marginals.resize(num_marginals);
  evaluations.resize(tasks.size());
  scratch.resize(scratch_per_worker(longest(groups)));
}

void one_layer_loop(LoopPlan& plan, const OneLayerParameters& parameters,
                    const OneLayerGradient& gradient, const Executor& executor) {
  const LoopCpu kernel = cpu();
  if (!plan.workspace.begin(parameters, kernel.query_table)) {
    one_layer_loop_reference(plan.groups, parameters, gradient);
    return;
  }
  const std::size_t stride = scratch_per_worker(longest(plan.groups));
  for_each_task(
      plan, executor,
      [&](std::size_t, const LoopPlan::Task& task, const PackedStrings& group, std::size_t worker) {
        kernel.task(blocks_of(group, task), plan.workspace.table(group.length, group.query),
                    plan.scratch.data() + worker * stride, plan.marginals.data() + task.marginals);
      });
  for (const LoopPlan::Task& task : plan.tasks) {
    const PackedStrings& group = plan.groups[static_cast<std::size_t>(task.group)];
    plan.workspace.add(
        group.length, group.query,
        {plan.marginals.data() + task.marginals, 2 * static_cast<std::size_t>(group.length)});
  }
  plan.workspace.finish(parameters, gradient);
}

OneLayerEvaluation one_layer_loop_evaluate(LoopPlan& plan, const OneLayerParameters& parameters,
                                           const Executor& executor) {
  const LoopCpu kernel = cpu();
  if (!plan.workspace.begin(parameters, kernel.query_table)) {
    return one_layer_loop_reference(plan.groups, parameters, UnusedGradient(parameters).view());
  }
  for_each_task(
      plan, executor,
      [&](std::size_t number, const LoopPlan::Task& task, const PackedStrings& group, std::size_t) {
        plan.evaluations[number] = no_strings();
        kernel.evaluate(blocks_of(group, task), plan.workspace.table(group.length, group.query),
                        plan.evaluations[number]);
      });
  return merged(plan.evaluations);
}

}  // namespace paperlab::kernels
