#pragma once
// The gradients of the sums on one block of GPU threads (host-device). A run of neighbouring
// threads, a warp where a token is wide, owns packs of one token: it keeps the streams' gradients
// of a pack in registers and goes through the sources, adding to each one's gradient, while the dot
// products for the weights are added up across the run. A wide token has several warps and several
// steps; their parts are added in order. No atomics: an order that is a function of D alone.

#include <utility>

#include "kernels/common/cuda/reduce.h"
#include "kernels/depth_aggregate/block.h"

namespace paperlab::kernels::depth {

constexpr int kMostGradients = 128;  // sources of a launch
constexpr int kPairs = 2;            // sources whose packs a thread asks for at once

// How the packs of a token are cut.
struct GradientShape {
  int lanes;  // threads of a run, 4 to 32
  int runs;   // of a token, side by side
  int steps;  // in which they go through it

  PAPERLAB_HD constexpr int runs_of_block() const { return kSumThreads / lanes; }
  PAPERLAB_HD constexpr int tokens_of_block() const { return runs_of_block() / runs; }
};

// As many runs as leave at most an eighth of them without a pack.
PAPERLAB_HD constexpr GradientShape gradient_shape(std::int64_t packs_of_token) {
  int lanes = 4;
  while (lanes < kWarp && lanes < packs_of_token) {
    lanes *= 2;
  }
  const std::int64_t parts = num_blocks(packs_of_token, lanes);
  int runs = lanes == kWarp ? kSumThreads / kWarp : 1;
  while (num_blocks(parts, runs) * runs - parts > parts / 8) {
    runs /= 2;
  }
  return {lanes, runs, static_cast<int>(num_blocks(parts, runs))};
}

// Of run `run` of a token, lane by lane.
PAPERLAB_HD constexpr std::int64_t pack_of(const GradientShape& shape, int step, int run,
                                           int lane) {
  return (std::int64_t{step} * shape.runs + run) * shape.lanes + lane;
}

// Sources of a launch: those whose weights and dot products lie in shared memory.
template <class Number>
PAPERLAB_HD constexpr int sources_of_launch(const GradientShape& shape) {
  return static_cast<int>(
      smaller(kWeightsInMemory<Number> / shape.runs_of_block(), kMostGradients));
}

struct GradientTask {
  const void* sources[kMostGradients];
  void* grad_sources[kMostGradients];  // absent: not wanted
  const void* grad_out[kMostWays];     // absent: zeros
  WeightTable weights;
  void* grad_weights;  // of statistics' type; absent: not wanted
  std::int64_t grad_token_stride;
  std::int64_t grad_way_stride;
  std::int64_t num_tokens;
  std::int64_t width;
  GradientShape shape;
  int num_sources;
  int num_added;  // the first so many gradients are added to
  int num_ways;
  bool is_whole;
};

template <class T>
struct GradientMemory {
  WayWeights<NumberOf<T>> weights[kWeightsInMemory<NumberOf<T>>];  // [tokens, J]
  WayWeights<NumberOf<T>> parts[kWeightsInMemory<NumberOf<T>>];    // [runs, J]
};

template <class T>
struct GradientRegisters {
  NumberOf<T> grad[kMostWays][kPackSize<T>];
  NumberOf<T> dots[kPairs][kMostWays];
  Pack x[kPairs];
  Pack to[kPairs];
  std::int64_t at;
  int left;
};

// ---------------------------------------------------------------------------------------------

// Neighbours `apart` exchange a number.
template <class R, class Get>
PAPERLAB_HD void swap_numbers([[maybe_unused]] DeviceTeam<R>& team, [[maybe_unused]] int apart,
                              [[maybe_unused]] Get get) {
#ifdef __CUDA_ARCH__
  auto& own = get(team.registers);
  own = __shfl_xor_sync(0xFFFFFFFFU, own, apart);
#endif
}
template <class R, class Get>
void swap_numbers(HostTeam<R>& team, int apart, Get get) {
  for (std::size_t i = 0; i < team.registers.size(); ++i) {
    const std::size_t other = i ^ static_cast<std::size_t>(apart);
    if (i < other) {
      std::swap(get(team.registers[i]), get(team.registers[other]));
    }
  }
}

// The way whose dot product a thread is left with.
PAPERLAB_HD constexpr int way_of_thread(int thread) { return thread % 2 * 2 + thread / 2 % 2; }

// Of 2 kKept ways that threads `apart` have, each keeps half and adds the other's numbers.
template <class T, int kKept, Team Block>
PAPERLAB_HD void share_ways(Block& team, int apart) {
  using Registers = GradientRegisters<T>;
  team.each_alone([&](int thread, Registers& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kPairs * kKept; ++i) {
      NumberOf<T>& low = own.dots[i / kKept][i % kKept];
      NumberOf<T>& high = own.dots[i / kKept][kKept + i % kKept];
      const NumberOf<T> kept = (thread & apart) != 0 ? high : low;
      high = (thread & apart) != 0 ? low : high;
      low = kept;
    }
  });
  PAPERLAB_UNROLL
  for (int i = 0; i < kPairs * kKept; ++i) {
    swap_numbers(team, apart, [&](Registers& own) -> NumberOf<T>& {
      return own.dots[i / kKept][kKept + i % kKept];
    });
  }
  team.each_alone([&](int /*thread*/, Registers& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kPairs * kKept; ++i) {
      own.dots[i / kKept][i % kKept] += own.dots[i / kKept][kKept + i % kKept];
    }
  });
}

// Adds up the dot products of a run; own.dots[i][0] becomes that of way_of_thread. A source's four
// numbers take 6 exchanges in a warp instead of 20.
template <class T, Team Block>
PAPERLAB_HD void add_dots(Block& team, int lanes) {
  static_assert(kMostWays == 4);
  share_ways<T, 2>(team, 1);
  share_ways<T, 1>(team, 2);
  for (int apart = kMostWays; apart < lanes; apart *= 2) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      exchange(
          team, apart,
          [&](int /*thread*/, GradientRegisters<T>& own) -> NumberOf<T>& { return own.dots[i][0]; },
          Plus{});
    }
  }
}

template <class T>
PAPERLAB_HD void ask_for_pairs(const GradientTask& task, int first, GradientRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const int j = first + i;
    if (j < task.num_sources && own.left > 0) {
      if (task.grad_weights != nullptr) {
        own.x[i] = load_at<T>(task.sources[j], own.at, own.left, task.is_whole);
      }
      if (j < task.num_added && task.grad_sources[j] != nullptr) {
        own.to[i] = load_at<T>(task.grad_sources[j], own.at, own.left, task.is_whole);
      }
    }
  }
}

// Where the thread is in this step, and the streams' gradients there.
template <class T>
PAPERLAB_HD void begin_step(const GradientTask& task, std::int64_t first_token, int step,
                            int thread, GradientRegisters<T>& own) {
  const int run = thread / task.shape.lanes;
  const std::int64_t token = first_token + run / task.shape.runs;
  const std::int64_t column =
      pack_of(task.shape, step, run % task.shape.runs, thread % task.shape.lanes) * kPackSize<T>;
  own.at = token * task.width + column;
  own.left = token < task.num_tokens && column < task.width
                 ? static_cast<int>(smaller(task.width - column, kPackSize<T>))
                 : 0;
  ask_for_pairs(task, 0, own);
  PAPERLAB_UNROLL
  for (int c = 0; c < kMostWays; ++c) {
    const bool is_there = own.left > 0 && task.grad_out[c] != nullptr;
    unpack<T>(
        is_there ? load_at<T>(task.grad_out[c], own.at, own.left, task.is_whole) : zero_pack(),
        own.grad[c]);
  }
}

// A source's gradient and its dot products.
template <class T>
PAPERLAB_HD void add_source(const GradientTask& task, const WayWeights<NumberOf<T>>& weights, int j,
                            const Pack& of_x, const Pack& of_to, const GradientRegisters<T>& own,
                            NumberOf<T> (&dots)[kMostWays]) {
  NumberOf<T> numbers[kPackSize<T>];
  if (task.grad_weights != nullptr) {
    unpack<T>(of_x, numbers);
    PAPERLAB_UNROLL
    for (int c = 0; c < kMostWays; ++c) {
      PAPERLAB_UNROLL
      for (int e = 0; e < kPackSize<T>; ++e) {
        dots[c] = fused(own.grad[c][e], numbers[e], dots[c]);
      }
    }
  }
  if (task.grad_sources[j] != nullptr) {
    unpack<T>(j < task.num_added ? of_to : zero_pack(), numbers);
    PAPERLAB_UNROLL
    for (int c = 0; c < kMostWays; ++c) {
      PAPERLAB_UNROLL
      for (int e = 0; e < kPackSize<T>; ++e) {
        numbers[e] = fused(weights.way[c], own.grad[c][e], numbers[e]);
      }
    }
    store_at<T>(task.grad_sources[j], own.at, own.left, task.is_whole, to_pack<T>(numbers));
  }
}

// weights [J]: of the thread's token.
template <class T>
PAPERLAB_HD void add_pairs(const GradientTask& task, const WayWeights<NumberOf<T>>* weights,
                           int first, GradientRegisters<T>& own) {
  Pack x[kPairs];
  Pack to[kPairs];
  PAPERLAB_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    x[i] = own.x[i];
    to[i] = own.to[i];
  }
  ask_for_pairs(task, first + kPairs, own);
  PAPERLAB_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    PAPERLAB_UNROLL
    for (int c = 0; c < kMostWays; ++c) {
      own.dots[i][c] = 0;
    }
    if (first + i < task.num_sources && own.left > 0) {
      add_source<T>(task, weights[first + i], first + i, x[i], to[i], own, own.dots[i]);
    }
  }
}

// The run's dot products go to its place in `parts`; the first four threads have them.
template <class T>
PAPERLAB_HD void keep_dots(const GradientTask& task, int step, int first, int thread,
                           const GradientRegisters<T>& own, WayWeights<NumberOf<T>>* parts) {
  if (thread % task.shape.lanes >= kMostWays) {
    return;
  }
  PAPERLAB_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    if (first + i < task.num_sources) {
      NumberOf<T>& part = parts[thread / task.shape.lanes * task.num_sources + first + i]
                              .way[way_of_thread(thread)];
      part = step == 0 ? own.dots[i][0] : part + own.dots[i][0];
    }
  }
}

// The runs of each token in order.
template <class T>
PAPERLAB_HD void store_dots(const GradientTask& task, const WayWeights<NumberOf<T>>* parts,
                            std::int64_t first_token, int num_tokens, int thread) {
  const int count = task.num_sources;
  auto* to = static_cast<NumberOf<T>*>(task.grad_weights);
  const int of_token = count * static_cast<int>(kMostWays);
  for (int i = thread; i < num_tokens * of_token; i += kSumThreads) {
    const int token = i / of_token;
    const int way = i % of_token / count;
    const int j = i % count;
    if (way < task.num_ways) {
      NumberOf<T> sum = 0;
      for (int run = 0; run < task.shape.runs; ++run) {
        sum += parts[(token * task.shape.runs + run) * count + j].way[way];
      }
      to[(first_token + token) * task.grad_token_stride + way * task.grad_way_stride + j] = sum;
    }
  }
}

// Block `block` of num_blocks(N, shape.tokens_of_block()).
template <class T, Team Block>
PAPERLAB_HD void gradient_block(Block& team, GradientMemory<T>& memory, const GradientTask& task,
                                std::int64_t block) {
  using Registers = GradientRegisters<T>;
  const std::int64_t first_token = block * task.shape.tokens_of_block();
  const auto num_tokens =
      static_cast<int>(smaller(task.num_tokens - first_token, task.shape.tokens_of_block()));
  team.each([&](int thread, Registers& /*own*/) {
    stage_weights<T>(task.weights, {first_token, num_tokens, 0, task.num_sources, task.num_ways},
                     thread, memory.weights);
  });
  for (int step = 0; step < task.shape.steps; ++step) {
    team.each_alone(
        [&](int thread, Registers& own) { begin_step<T>(task, first_token, step, thread, own); });
    for (int first = 0; first < task.num_sources; first += kPairs) {
      team.each_alone([&](int thread, Registers& own) {
        const int token = thread / (task.shape.lanes * task.shape.runs);
        add_pairs<T>(task, memory.weights + token * task.num_sources, first, own);
      });
      if (task.grad_weights != nullptr) {
        add_dots<T>(team, task.shape.lanes);
        team.each_alone([&](int thread, Registers& own) {
          keep_dots<T>(task, step, first, thread, own, memory.parts);
        });
      }
    }
  }
  if (task.grad_weights != nullptr) {
    team.each([](int /*thread*/, Registers& /*own*/) {});
    team.each_alone([&](int thread, Registers& /*own*/) {
      store_dots<T>(task, memory.parts, first_token, num_tokens, thread);
    });
  }
}

}  // namespace paperlab::kernels::depth
