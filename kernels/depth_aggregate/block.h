#pragma once
// The weighted sums on one block of GPU threads (host-device; see common/cuda/team.h). A thread
// owns one pack of 16 bytes of the streams: it reads that pack of every source, some of them asked
// for ahead, and keeps the sums of up to four ways in registers. The weights of the block's tokens
// lie in shared memory, those of a source's ways side by side.

#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/team.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/depth_aggregate/tile.h"

namespace paperlab::kernels::depth {

constexpr int kSumThreads = 256;
constexpr int kMostSources = 256;  // of a sum: their addresses are a parameter of the launch

// The weights of a source in the ways that are made together.
template <class Number>
struct alignas(16) WayWeights {
  Number way[kMostWays];
};

template <class Number>
constexpr int kWeightsInMemory = 16384 / static_cast<int>(sizeof(WayWeights<Number>));

// Sources whose packs a thread asks for at once: as many more are in use.
template <class T>
constexpr int kSourcesAtOnce = sizeof(T) == 8 ? 2 : 4;

PAPERLAB_HD constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// ---------------------------------------------------------------------------------------------

// Way c, source j of token n: [n token_stride + c way_stride + j].
struct WeightTable {
  const void* data;
  DType dtype;  // float32, or that of the sources
  std::int64_t token_stride;
  std::int64_t way_stride;
};

template <class T>
PAPERLAB_HD NumberOf<T> weight_at(const WeightTable& weights, std::int64_t at) {
  return weights.dtype == DType::kFloat32
             ? static_cast<NumberOf<T>>(static_cast<const float*>(weights.data)[at])
             : to_number(static_cast<const T*>(weights.data)[at]);
}

struct WeightRange {
  std::int64_t token;
  int num_tokens;
  int source;
  int num_sources;
  int num_ways;
};

// to [tokens, sources], by all threads of a block; ways that do not exist are zeros.
template <class T>
PAPERLAB_HD void stage_weights(const WeightTable& weights, const WeightRange& range, int thread,
                               WayWeights<NumberOf<T>>* to) {
  for (int i = thread; i < range.num_tokens * range.num_sources; i += kSumThreads) {
    const std::int64_t first = (range.token + i / range.num_sources) * weights.token_stride +
                               range.source + i % range.num_sources;
    PAPERLAB_UNROLL
    for (int c = 0; c < kMostWays; ++c) {
      to[i].way[c] = c < range.num_ways ? weight_at<T>(weights, first + c * weights.way_stride)
                                        : NumberOf<T>{0};
    }
  }
}

// ---------------------------------------------------------------------------------------------

// Tokens to which kSumThreads packs in a row belong at most.
PAPERLAB_HD constexpr int tokens_of_packs(std::int64_t packs_of_token) {
  return static_cast<int>(smaller((kSumThreads - 2) / packs_of_token + 2, kSumThreads));
}

// Sources whose weights for so many tokens lie in shared memory.
template <class T>
PAPERLAB_HD constexpr int sources_of_pass(int num_tokens) {
  return kWeightsInMemory<NumberOf<T>> / num_tokens / kSourcesAtOnce<T> * kSourcesAtOnce<T>;
}

struct SumTask {
  const void* sources[kMostSources];
  void* out[kMostWays];
  WeightTable weights;
  std::int64_t num_tokens;
  std::int64_t width;
  std::int64_t packs_of_token;
  int num_sources;
  int num_ways;     // of these at most kMostWays
  int most_tokens;  // of a block
  bool is_whole;    // elements.h
};

template <class T>
struct SumMemory {
  WayWeights<NumberOf<T>> weights[kWeightsInMemory<NumberOf<T>>];
};

template <class T>
struct SumRegisters {
  Pack next[kSourcesAtOnce<T>];
  NumberOf<T> sums[kMostWays][kPackSize<T>];
  std::int64_t at;  // first element of the pack, of [N, D]
  int token;        // of the block
  int left;         // elements of the row from there on; 0: no pack
};

template <class T>
PAPERLAB_HD Pack load_at(const void* data, std::int64_t at, int left, bool is_whole) {
  const T* from = static_cast<const T*>(data) + at;
  return is_whole ? load_pack(from) : load_some(from, left);
}

template <class T>
PAPERLAB_HD void store_at(void* data, std::int64_t at, int left, bool is_whole, const Pack& pack) {
  T* to = static_cast<T*>(data) + at;
  if (is_whole) {
    store_pack(to, pack);
  } else {
    store_some(to, left, pack);
  }
}

template <class T>
PAPERLAB_HD void ask_for_sources(const SumTask& task, int first, SumRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int i = 0; i < kSourcesAtOnce<T>; ++i) {
    if (first + i < task.num_sources && own.left > 0) {
      own.next[i] = load_at<T>(task.sources[first + i], own.at, own.left, task.is_whole);
    }
  }
}

template <class T>
PAPERLAB_HD void begin_sum(const SumTask& task, std::int64_t block, int thread,
                           SumRegisters<T>& own) {
  const std::int64_t first = block * kSumThreads;
  const std::int64_t first_token = first / task.packs_of_token;
  const auto rest = static_cast<std::uint32_t>(first - first_token * task.packs_of_token) +
                    static_cast<std::uint32_t>(thread);
  const std::uint32_t token = rest / static_cast<std::uint32_t>(task.packs_of_token);
  const std::int64_t column = (rest - std::int64_t{token} * task.packs_of_token) * kPackSize<T>;
  own.token = static_cast<int>(token);
  own.at = (first_token + token) * task.width + column;
  own.left = first_token + token < task.num_tokens
                 ? static_cast<int>(smaller(task.width - column, kPackSize<T>))
                 : 0;
  PAPERLAB_UNROLL
  for (int c = 0; c < kMostWays; ++c) {
    PAPERLAB_UNROLL
    for (int e = 0; e < kPackSize<T>; ++e) {
      own.sums[c][e] = 0;
    }
  }
  ask_for_sources(task, 0, own);
}

// weights [count]: of the thread's token, for the sources from `first` on.
template <class T>
PAPERLAB_HD void add_sources(const SumTask& task, const WayWeights<NumberOf<T>>* weights, int first,
                             int count, SumRegisters<T>& own) {
  for (int j = 0; j < count; j += kSourcesAtOnce<T>) {
    Pack packs[kSourcesAtOnce<T>];
    PAPERLAB_UNROLL
    for (int i = 0; i < kSourcesAtOnce<T>; ++i) {
      packs[i] = own.next[i];
    }
    ask_for_sources(task, first + j + kSourcesAtOnce<T>, own);
    PAPERLAB_UNROLL
    for (int i = 0; i < kSourcesAtOnce<T>; ++i) {
      if (j + i < count) {
        const WayWeights<NumberOf<T>> a = weights[j + i];
        NumberOf<T> x[kPackSize<T>];
        unpack<T>(packs[i], x);
        PAPERLAB_UNROLL
        for (int c = 0; c < kMostWays; ++c) {
          PAPERLAB_UNROLL
          for (int e = 0; e < kPackSize<T>; ++e) {
            own.sums[c][e] = fused(a.way[c], x[e], own.sums[c][e]);
          }
        }
      }
    }
  }
}

template <class T>
PAPERLAB_HD void store_sums(const SumTask& task, const SumRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int c = 0; c < kMostWays; ++c) {
    if (c < task.num_ways && own.left > 0) {
      store_at<T>(task.out[c], own.at, own.left, task.is_whole, to_pack<T>(own.sums[c]));
    }
  }
}

// Block `block` of num_blocks(N packs_of_token, kSumThreads).
template <class T, Team Block>
PAPERLAB_HD void sum_block(Block& team, SumMemory<T>& memory, const SumTask& task,
                           std::int64_t block) {
  const int pass = sources_of_pass<T>(task.most_tokens);
  const std::int64_t first_token = block * kSumThreads / task.packs_of_token;
  const auto num_tokens =
      static_cast<int>(smaller(task.num_tokens - first_token, task.most_tokens));
  for (int first = 0; first < task.num_sources; first += pass) {
    const auto count = static_cast<int>(smaller(task.num_sources - first, pass));
    team.each([&](int thread, SumRegisters<T>& own) {
      if (first == 0) {
        begin_sum(task, block, thread, own);
      }
      stage_weights<T>(task.weights, {first_token, num_tokens, first, count, task.num_ways}, thread,
                       memory.weights);
    });
    team.each([&](int /*thread*/, SumRegisters<T>& own) {
      add_sources<T>(task, memory.weights + own.token * count, first, count, own);
    });
  }
  team.each_alone([&](int /*thread*/, SumRegisters<T>& own) { store_sums<T>(task, own); });
}

}  // namespace paperlab::kernels::depth
