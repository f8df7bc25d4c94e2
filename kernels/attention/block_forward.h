#pragma once
// The forward pass in bfloat16 and float16 by tensor cores: a block of four warps takes a tile of
// rows through steps of 64 keys with online softmax. While a warp multiplies queries and keys, the
// values arrive; while it multiplies weights and values, the next keys. With few rows (decoding)
// all warps have the same rows and 16 keys of each step; their results are added up at the end. The
// logits are kept in units of log 2: weights are powers of two.

#include "kernels/attention/block_task.h"
#include "kernels/attention/block_tiles.h"

namespace paperlab::kernels {

constexpr float kLog2E = 1.44269504088896340736F;
constexpr float kLn2 = 0.693147180559945309417F;

// 2^x; 0 for -infinity.
PAPERLAB_HD inline float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// kWidth: D padded; kRowTiles: matrices of 16 rows that a warp has.
template <class E, int kWidth_, int kRowTiles_, bool kSharesRows_>
struct ForwardShape {
  using Element = E;
  static constexpr int kWidth = kWidth_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr bool kSharesRows = kSharesRows_;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kSharesRows ? kWarpRows : kBlockWarps * kWarpRows;
  // Sums of 32 rows x 128 columns leave registers for scores of half as many keys.
  static constexpr int kKeys = kRowTiles * kWidth > 128 && kRowTiles > 1 ? 32 : 64;
  static constexpr int kWarpKeys = kSharesRows ? kKeys / kBlockWarps : kKeys;
  static constexpr int kKeyTiles = kWarpKeys / 8;

  PAPERLAB_HD static constexpr int first_row(int warp) {
    return kSharesRows ? 0 : warp * kWarpRows;
  }
  PAPERLAB_HD static constexpr int first_key(int warp) {
    return kSharesRows ? warp * kWarpKeys : 0;
  }
};

// Wider rows leave registers for one matrix a warp.
template <class E, int kWidth>
using TileShape = ForwardShape<E, kWidth, kWidth <= 128 ? 2 : 1, false>;
template <class E, int kWidth>
using DecodeShape = ForwardShape<E, kWidth, 1, true>;

// What a warp knows of its rows at the end, where warps share them.
struct RowParts {
  float largest[kBlockWarps][16];
  float sum[kBlockWarps][16];
};

// One block's way through its keys. Every thread reads it where it needs it: in shared memory it
// takes no registers.
struct ForwardLoop {
  ForwardTask task;
  KeySteps steps;
  KeyStream<Bits> raw;
  KeyStream<Bits> prefix;
  int count;    // of steps
  float scale;  // of the logits, in units of log 2
};

PAPERLAB_HD inline ForwardLoop forward_loop(const AttentionLaunch& of, const ForwardTask& task,
                                            std::int64_t step) {
  ForwardLoop loop{task, key_steps(task.span, step),
                   {},   {},
                   0,    static_cast<float>(of.in.scale * double{kLog2E})};
  loop.count = static_cast<int>(loop.steps.count);
  loop.raw = key_stream<Bits>(of, task.tile.place, false);
  if (loop.steps.num_prefix > 0) {
    loop.prefix = key_stream<Bits>(of, task.tile.place, true);
  }
  return loop;
}

template <class S>
struct KeyTiles {
  Bits key[S::kKeys * S::kWidth];
  Bits value[S::kKeys * S::kWidth];
};

template <class S>
struct alignas(16) ForwardMemory {
  Bits query[S::kRows * S::kWidth];  // then the results
  union {
    KeyTiles<S> tiles;
    float parts[S::kSharesRows ? kBlockWarps * 16 * S::kWidth : 1];  // at the end
  };
  RowLimits limits[S::kRows];
  RowParts rows;
  ForwardLoop loop;
};

template <class S, class Lanes>
struct ForwardRegisters {
  Sums<Lanes> scores[S::kRowTiles][S::kKeyTiles];
  Sums<Lanes> out[S::kRowTiles][S::kWidth / 8];
  // Of rows lane / 4 and lane / 4 + 8 of each matrix, in units of log 2; sum is the own lane's.
  typename Lanes::template Fragment<float, 2> largest[S::kRowTiles];
  typename Lanes::template Fragment<float, 2> sum[S::kRowTiles];
};

template <class S, class Lanes>
PAPERLAB_HD void load_query(Lanes& warp, int number, ForwardMemory<S>& memory,
                            const AttentionLaunch& of, bool is_prefix) {
  const bool is_other = is_prefix && of.in.prefix_query.data != nullptr;
  load_row_tile<S::kWidth, S::kRows>(warp, number, memory.query, of, memory.loop.task.tile,
                                     is_other ? of.in.prefix_query : of.in.query);
}

template <class S, class Lanes>
PAPERLAB_HD void load_step(Lanes& warp, int number, Bits* tile, const AttentionLaunch& of,
                           const ForwardLoop& loop, int step, bool is_value) {
  const KeyBlock block = step_block(loop.steps, step, S::kKeys);
  const KeyStream<Bits>& keys = block.is_prefix ? loop.prefix : loop.raw;
  load_key_tile<S::kWidth, S::kKeys>(warp, number, tile, is_value ? keys.value : keys.key,
                                     is_value ? keys.value_stride : keys.key_stride, of, block,
                                     part_of(block, loop.task.span));
}

// The first queries and keys; the rows' limits and sums. `task()` is the block's work.
template <class S, class T, class Task>
PAPERLAB_HD void begin_forward(T& team, ForwardMemory<S>& memory, const AttentionLaunch& of,
                               Task task) {
  using Lanes = typename T::Lanes;
  ForwardLoop& loop = memory.loop;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    warp.lanes([&](int lane) {
      if (number == 0 && lane == 0) {
        loop = forward_loop(of, task(), S::kKeys);
      }
    });
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    if (loop.count > 0) {
      load_query<S>(warp, number, memory, of, loop.steps.num_prefix > 0);
      load_step<S>(warp, number, memory.tiles.key, of, loop, 0, false);
    }
    clear(warp, own.out);
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 2 * S::kRowTiles; ++i) {
        own.largest[i / 2].of(lane)[i % 2] = -INFINITY;
        own.sum[i / 2].of(lane)[i % 2] = 0.0F;
      }
      const RowTile& tile = loop.task.tile;
      const int row = number * kWarp + lane;
      if (row < S::kRows) {
        memory.limits[row] =
            limits_of(keys_of_row(of, tile.place.batch, tile.first + smaller(row, tile.count - 1)));
      }
    });
    warp.wait();
  });
}

// Scales the scores and puts -infinity where a row does not see the key.
template <class S, class Lanes>
PAPERLAB_HD void mask_scores(const Lanes& warp, int number, const ForwardMemory<S>& memory,
                             const KeyBlock& block, float scale, ForwardRegisters<S, Lanes>& own) {
  warp.lanes([&](int lane) {
    const int first = static_cast<int>(block.begin) + S::first_key(number);
    PAPERLAB_UNROLL
    for (int m = 0; m < S::kRowTiles; ++m) {
      PAPERLAB_UNROLL
      for (int half = 0; half < 2; ++half) {
        const MatrixPlace at = place_in_c(lane, 2 * half);
        const RowLimits limits = memory.limits[S::first_row(number) + 16 * m + at.row];
        PAPERLAB_UNROLL
        for (int n = 0; n < S::kKeyTiles; ++n) {
          PAPERLAB_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& score = own.scores[m][n].of(lane)[2 * half + i];
            const bool is_seen = limits.sees(block.is_prefix, first + 8 * n + at.column + i);
            score = is_seen ? scale * score : -INFINITY;
          }
        }
      }
    }
  });
}

// The largest score of each row, over its four lanes.
template <class S, class Lanes>
PAPERLAB_HD void find_largest(const Lanes& warp, const Sums<Lanes> (&scores)[S::kKeyTiles],
                              typename Lanes::template Fragment<float, 2>& largest) {
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      float most = -INFINITY;
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kKeyTiles; ++n) {
        most = fmaxf(most, fmaxf(scores[n].of(lane)[2 * half], scores[n].of(lane)[2 * half + 1]));
      }
      largest.of(lane)[half] = most;
    }
  });
  warp.over_quad(largest, [](float a, float b) { return fmaxf(a, b); });
}

// Scores to weights relative to the largest score so far; the earlier sums are rescaled to it.
template <class S, class Lanes>
PAPERLAB_HD void soften(const Lanes& warp, float factor, ForwardRegisters<S, Lanes>& own) {
  PAPERLAB_UNROLL
  for (int m = 0; m < S::kRowTiles; ++m) {
    typename Lanes::template Fragment<float, 2> most;
    find_largest<S>(warp, own.scores[m], most);
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float old = own.largest[m].of(lane)[half];
        const float largest = fmaxf(old, factor * most.of(lane)[half]);
        const float base = largest == -INFINITY ? 0.0F : largest;
        const float rescale = power_of_two(old - base);
        float sum = 0.0F;
        PAPERLAB_UNROLL
        for (int n = 0; n < S::kKeyTiles; ++n) {
          PAPERLAB_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& score = own.scores[m][n].of(lane)[2 * half + i];
            score = power_of_two(fmaf(score, factor, -base));
            sum += score;
          }
        }
        own.largest[m].of(lane)[half] = largest;
        own.sum[m].of(lane)[half] = fmaf(own.sum[m].of(lane)[half], rescale, sum);
        PAPERLAB_UNROLL
        for (int n = 0; n < S::kWidth / 8; ++n) {
          own.out[m][n].of(lane)[2 * half] *= rescale;
          own.out[m][n].of(lane)[2 * half + 1] *= rescale;
        }
      }
    });
  }
}

// Step `step`: scores, then weights and their sums of values. Its keys are there.
template <class S, class T>
PAPERLAB_HD void forward_step(T& team, ForwardMemory<S>& memory, const AttentionLaunch& of,
                              int step) {
  using Lanes = typename T::Lanes;
  using E = typename S::Element;
  const ForwardLoop& loop = memory.loop;
  if (step > 0 && step == loop.steps.num_prefix && of.in.prefix_query.data != nullptr) {
    team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
      load_query<S>(warp, number, memory, of, false);
      warp.wait();
    });
  }
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    load_step<S>(warp, number, memory.tiles.value, of, loop, step, true);
    clear(warp, own.scores);
    multiply_rows<E, S::kWidth>(warp, memory.query, S::first_row(number), memory.tiles.key,
                                S::first_key(number), own.scores);
    warp.wait();
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    if (step + 1 < loop.count) {
      load_step<S>(warp, number, memory.tiles.key, of, loop, step + 1, false);
    }
    const KeyBlock block = step_block(loop.steps, step, S::kKeys);
    const bool is_plain = loop.scale > 0.0F && is_seen_by_all(block, loop.task.keys);
    if (!is_plain) {
      mask_scores<S>(warp, number, memory, block, loop.scale, own);
    }
    soften<S>(warp, is_plain ? loop.scale : 1.0F, own);
    multiply_columns<E, S::kWidth>(warp, own.scores, memory.tiles.value, S::first_key(number),
                                   own.out);
    warp.wait();
  });
}

// ---------------------------------------------------------------------------------------------

// Results of rows that belong to one warp.
template <class S, class T>
PAPERLAB_HD void store_forward(T& team, ForwardMemory<S>& memory, const ForwardLaunch& launch) {
  using Lanes = typename T::Lanes;
  const AttentionLaunch& of = launch.attention;
  const RowTile& tile = memory.loop.task.tile;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    PAPERLAB_UNROLL
    for (int m = 0; m < S::kRowTiles; ++m) {
      warp.over_quad(own.sum[m], Plus{});
    }
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 2 * S::kRowTiles; ++i) {
        const int row = S::first_row(number) + 8 * i + lane / 4;
        if (lane % 4 == 0 && row < tile.count) {
          static_cast<float*>(launch.out.lse)[statistic_at(of, tile.place, tile.first + row)] =
              fmaf(own.largest[i / 2].of(lane)[i % 2], kLn2,
                   std::log(own.sum[i / 2].of(lane)[i % 2]));
        }
      }
    });
    store_sums<typename S::Element, S::kWidth>(warp, own.out, memory.query, S::first_row(number),
                                               [&](int lane, int m, int half) {
                                                 const float sum = own.sum[m].of(lane)[half];
                                                 return sum == 0.0F ? 1.0F : 1.0F / sum;
                                               });
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    store_tile<S::kWidth, S::kRows>(
        warp, number, memory.query, of.in.query.size[3], launch.is_whole_out,
        [&](int row) -> Bits* {
          return row < tile.count ? unit_row<Bits>(launch.out.out, of, tile.place, tile.first + row)
                                  : nullptr;
        });
  });
}

// Every warp's sums of the rows that all share, to shared memory.
template <class S, class T>
PAPERLAB_HD void store_warp_parts(T& team, ForwardMemory<S>& memory) {
  using Lanes = typename T::Lanes;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    warp.over_quad(own.sum[0], Plus{});
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 4; ++i) {
        const MatrixPlace at = place_in_c(lane, i);
        PAPERLAB_UNROLL
        for (int n = 0; n < S::kWidth / 8; ++n) {
          memory.parts[(number * 16 + at.row) * S::kWidth + 8 * n + at.column] =
              own.out[0][n].of(lane)[i];
        }
        if (at.column == 0) {
          memory.rows.largest[number][at.row] = own.largest[0].of(lane)[i / 2];
          memory.rows.sum[number][at.row] = own.sum[0].of(lane)[i / 2];
        }
      }
    });
  });
}

// Adds up the warps' sums in order: this run's part of the result. Its maximum is in natural units.
template <class S, class T>
PAPERLAB_HD void store_run(T& team, const ForwardMemory<S>& memory, const ForwardLaunch& launch) {
  using Lanes = typename T::Lanes;
  const AttentionLaunch& of = launch.attention;
  const ForwardTask& task = memory.loop.task;
  const std::int64_t head_dim = of.in.query.size[3];
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    warp.lanes([&](int lane) {
      for (int row = number; row < task.tile.count; row += kBlockWarps) {
        float* to = static_cast<float*>(launch.partials) +
                    partial_at(of, task.tile.place, task.tile.first + row, task.run);
        float largest = -INFINITY;
        for (int part = 0; part < kBlockWarps; ++part) {
          largest = fmaxf(largest, memory.rows.largest[part][row]);
        }
        const float base = largest == -INFINITY ? 0.0F : largest;
        for (int d = lane; d < head_dim + 1; d += kWarp) {
          float sum = 0.0F;
          for (int part = 0; part < kBlockWarps; ++part) {
            const float term = d < head_dim ? memory.parts[(part * 16 + row) * S::kWidth + d]
                                            : memory.rows.sum[part][row];
            sum = fmaf(power_of_two(memory.rows.largest[part][row] - base), term, sum);
          }
          to[d < head_dim ? d : d + 1] = sum;
        }
        if (lane == 0) {
          to[head_dim] = largest * kLn2;
        }
      }
    });
  });
}

// Block `index` of the forward pass.
template <class S, class T>
PAPERLAB_HD void forward_block(T& team, ForwardMemory<S>& memory, const ForwardLaunch& launch,
                               std::int64_t index) {
  begin_forward<S>(team, memory, launch.attention,
                   [&] { return forward_task(launch, index, S::kRows); });
  for (int step = 0; step < memory.loop.count; ++step) {
    forward_step<S>(team, memory, launch.attention, step);
  }
  if constexpr (S::kSharesRows) {
    store_warp_parts<S>(team, memory);
    store_run<S>(team, memory, launch);
  } else {
    store_forward<S>(team, memory, launch);
  }
}

}  // namespace paperlab::kernels
