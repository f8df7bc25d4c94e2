#pragma once
// The GPU's depth_aggregate on the CPU: the same plan and the same host-device functions, block by
// block and thread by thread. Memory and registers start as NaN; a workspace has what the plan
// asked for and not a byte more.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/depth_aggregate/plan.h"
#include "tests/kernels/depth_aggregate_forms.h"

namespace paperlab::kernels::depth_test {

struct NoMemory {};

// Launches that run at once.
class EmulatedLaunch {
 public:
  explicit EmulatedLaunch(bool is_reversed) : is_reversed_(is_reversed) {}

  template <class T>
  void sum(const depth::SumTask& task, std::int64_t num_blocks) const {
    run<depth::SumRegisters<T>, depth::SumMemory<T>>(
        depth::kSumThreads, num_blocks, [&](auto& team, auto& memory, std::int64_t block) {
          depth::sum_block<T>(team, memory, task, block);
        });
  }
  template <class T>
  void gradient(const depth::GradientTask& task, std::int64_t num_blocks) const {
    run<depth::GradientRegisters<T>, depth::GradientMemory<T>>(
        depth::kSumThreads, num_blocks, [&](auto& team, auto& memory, std::int64_t block) {
          depth::gradient_block<T>(team, memory, task, block);
        });
  }
  template <class T>
  void norm(const depth::NormTask& task, std::int64_t num_blocks) const {
    run<depth::NormRegisters<T>, NoMemory>(depth::kRowThreads, num_blocks,
                                           [&](auto& team, auto& /*memory*/, std::int64_t block) {
                                             depth::norm_block<T>(team, task, block);
                                           });
  }
  template <class T>
  void product(const depth::ProductTask& task, std::int64_t num_blocks) const {
    using Tile =
        std::conditional_t<sizeof(T) == 2, depth::TensorTile, depth::PlainTile<NumberOf<T>>>;
    run<typename Tile::Registers, depth::ProductMemory<typename Tile::Number>>(
        depth::kProductThreads, num_blocks, [&](auto& team, auto& memory, std::int64_t block) {
          depth::product_block<Tile>(team, memory, task, block);
        });
  }
  template <class Number>
  void dots(const depth::DotTask& task, std::int64_t num_blocks) const {
    run<depth::DotRegisters<Number>, NoMemory>(
        depth::kRowThreads, num_blocks, [&](auto& team, auto& /*memory*/, std::int64_t block) {
          depth::dot_block<Number>(team, task, block);
        });
  }
  template <class Number>
  void columns(const depth::ColumnTask& task, std::int64_t num_blocks) const {
    run<NoRegisters, depth::ColumnMemory<Number>>(
        depth::kRowThreads, num_blocks, [&](auto& team, auto& memory, std::int64_t block) {
          depth::column_block<Number>(team, memory, task, block);
        });
  }
  void zero(void* data, std::int64_t num_bytes) const {
    std::memset(data, 0, static_cast<std::size_t>(num_bytes));
  }

 private:
  template <class Registers, class Memory, class Body>
  void run(int num_threads, std::int64_t num_blocks, Body body) const {
    const auto memory = std::make_unique<Memory>();
    HostTeam<Registers> team(num_threads, is_reversed_);
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      std::memset(static_cast<void*>(memory.get()), 0xFF, sizeof(Memory));
      std::memset(static_cast<void*>(team.registers.data()), 0xFF,
                  team.registers.size() * sizeof(Registers));
      body(team, *memory, is_reversed_ ? num_blocks - 1 - i : i);
    }
  }

  bool is_reversed_;
};

class EmulatedForms final : public Forms {
 public:
  explicit EmulatedForms(bool is_reversed) : launch_(is_reversed) {}

  void weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result) override {
    run(problem.dtype, [&](auto& plan) { plan.weights(problem, result); });
  }
  void weights_backward(const ConnectionWeights& problem,
                        const ConnectionWeightsGradients& gradients) override {
    run(problem.dtype, [&](auto& plan) { plan.weights_backward(problem, gradients); });
  }
  void sum(const DepthAggregate& problem, void* const* out) override {
    run(problem.dtype, [&](auto& plan) { plan.sum(problem, out); });
  }
  void sum_backward(const DepthAggregate& problem,
                    const DepthAggregateGradients& gradients) override {
    run(problem.dtype, [&](auto& plan) { plan.sum_backward(problem, gradients); });
  }
  void step(const DepthStep& problem, const ConnectionWeightsResult& result,
            void* const* out) override {
    run(problem.aggregate.dtype, [&](auto& plan) { plan.step(problem, result, out); });
  }
  void step_backward(const DepthStep& problem, const DepthStepGradients& gradients) override {
    run(problem.aggregate.dtype, [&](auto& plan) { plan.step_backward(problem, gradients); });
  }

 private:
  static constexpr std::size_t kAligned = 256;

  template <class Run>
  void run(DType dtype, Run body) const {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      const depth::NoLaunch nowhere;
      depth::DepthPlan<T, depth::NoLaunch> measured(nowhere, nullptr);
      body(measured);
      const auto size = static_cast<std::size_t>(measured.num_bytes());
      std::vector<std::byte> memory(size + 2 * kAligned, std::byte{0xFF});
      std::byte* first = memory.data();
      first += (kAligned - reinterpret_cast<std::uintptr_t>(first) % kAligned) % kAligned;
      depth::DepthPlan<T, EmulatedLaunch> plan(launch_, size == 0 ? nullptr : first);
      body(plan);
      EXPECT_EQ(plan.num_bytes(), measured.num_bytes());
      const auto is_touched = [](std::byte byte) { return byte != std::byte{0xFF}; };
      EXPECT_TRUE(std::none_of(memory.data(), first, is_touched) &&
                  std::none_of(first + size, memory.data() + memory.size(), is_touched));
    });
  }

  EmulatedLaunch launch_;
};

inline MakeForms emulated(bool is_reversed = false) {
  return [is_reversed](Case&, const std::vector<Numbers*>&) {
    return std::make_unique<EmulatedForms>(is_reversed);
  };
}

}  // namespace paperlab::kernels::depth_test
