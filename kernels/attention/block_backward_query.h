#pragma once
// The gradient of a tile of queries: block_backward.h.

#include "kernels/attention/block_backward.h"

namespace paperlab::kernels {

// kKeys: of a step.
template <class E, int kWidth_, int kKeys_>
struct QueryShape {
  using Element = E;
  static constexpr int kWidth = kWidth_;
  static constexpr int kKeys = kKeys_;
};

// One pass of a block. In shared memory, as ForwardLoop.
struct QueryLoop {
  RowTile tile;
  TileKeys keys;
  QueryPass pass;
  KeySteps steps;
  KeyStream<Bits> raw;
  KeyStream<Bits> prefix;
  float scale;  // of the logits, in units of log 2
};

PAPERLAB_HD inline QueryLoop query_loop(const BackwardLaunch& launch, const RowTile& tile, int pass,
                                        std::int64_t step) {
  const AttentionLaunch& of = launch.attention;
  QueryLoop loop{tile,
                 keys_of_tile(of, tile),
                 {},
                 {},
                 {},
                 {},
                 static_cast<float>(of.in.scale * double{kLog2E})};
  loop.pass = query_pass(launch, span_of(loop.keys.any), pass);
  loop.steps = key_steps(loop.pass.span, step);
  loop.raw = key_stream<Bits>(of, tile.place, false);
  if (loop.steps.num_prefix > 0) {
    loop.prefix = key_stream<Bits>(of, tile.place, true);
  }
  return loop;
}

template <class E, int kWidth>
using QueryTileShape = QueryShape<E, kWidth, kWidth <= 128 ? 64 : 32>;

template <class S>
struct alignas(16) QueryMemory {
  Bits query[kOwnRows * S::kWidth];  // then the results
  Bits grad[kOwnRows * S::kWidth];
  Bits key[2][S::kKeys * S::kWidth];
  Bits value[S::kKeys * S::kWidth];
  RowStatistics rows[kOwnRows];
  QueryLoop loop;
};

template <class S, class Lanes>
struct QueryRegisters {
  Sums<Lanes> weights[1][S::kKeys / 8];  // [16 rows, keys]
  Sums<Lanes> query[1][S::kWidth / 8];
  typename Lanes::template Fragment<float, 2> lse;  // of rows lane / 4 and lane / 4 + 8
  typename Lanes::template Fragment<float, 2> delta;
};

template <class S, class Lanes>
PAPERLAB_HD void load_query_keys(Lanes& warp, int number, Bits* tile, const AttentionLaunch& of,
                                 const QueryLoop& loop, std::int64_t step, bool is_value) {
  const KeyBlock block = step_block(loop.steps, step, S::kKeys);
  const KeyStream<Bits>& keys = block.is_prefix ? loop.prefix : loop.raw;
  load_key_tile<S::kWidth, S::kKeys>(warp, number, tile, is_value ? keys.value : keys.key,
                                     is_value ? keys.value_stride : keys.key_stride, of, block,
                                     part_of(block, loop.pass.span));
}

template <class S, class Lanes>
PAPERLAB_HD void load_first_query(Lanes& warp, int number, QueryMemory<S>& memory,
                                  const BackwardLaunch& launch) {
  const AttentionLaunch& of = launch.attention;
  const QueryLoop& loop = memory.loop;
  if (loop.steps.count > 0) {
    const bool is_other = loop.steps.num_prefix > 0 && of.in.prefix_query.data != nullptr;
    load_row_tile<S::kWidth, kOwnRows>(warp, number, memory.query, of, loop.tile,
                                       is_other ? of.in.prefix_query : of.in.query);
    load_row_tile<S::kWidth, kOwnRows>(warp, number, memory.grad, of, loop.tile,
                                       launch.forward.grad_out);
    load_query_keys<S>(warp, number, memory.key[0], of, loop, 0, false);
  }
}

// `index`: of the tile.
template <class S, class T>
PAPERLAB_HD void begin_query(T& team, QueryMemory<S>& memory, const BackwardLaunch& launch,
                             std::int64_t index, int pass) {
  using Lanes = typename T::Lanes;
  QueryLoop& loop = memory.loop;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    warp.lanes([&](int lane) {
      if (number == 0 && lane == 0) {
        loop = query_loop(launch, row_tile(launch.attention, index, kOwnRows), pass, S::kKeys);
      }
    });
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    clear(warp, own.query);
    load_first_query<S>(warp, number, memory, launch);
    warp.lanes([&](int lane) {
      const int row = number * kWarp + lane;
      if (row < kOwnRows) {
        memory.rows[row] = row_statistics(launch, loop.tile, row);
      }
    });
    warp.wait();
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int half = 0; half < 2; ++half) {
        const RowStatistics& row = memory.rows[16 * number + 8 * half + lane / 4];
        own.lse.of(lane)[half] = row.lse;
        own.delta.of(lane)[half] = row.delta;
      }
    });
  });
}

template <class S, class Lanes>
PAPERLAB_HD void weigh_rows(const Lanes& warp, int number, const QueryMemory<S>& memory,
                            std::int64_t step, QueryRegisters<S, Lanes>& own) {
  const KeyBlock block = step_block(memory.loop.steps, step, S::kKeys);
  const bool is_seen = is_seen_by_all(block, memory.loop.keys);
  const float scale = memory.loop.scale;
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const RowLimits limits = memory.rows[16 * number + 8 * half + lane / 4].limits;
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kKeys / 8; ++n) {
        PAPERLAB_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int key = static_cast<int>(block.begin) + 8 * n + lane % 4 * 2 + i;
          float& weight = own.weights[0][n].of(lane)[2 * half + i];
          const bool is_used = is_seen || limits.sees(block.is_prefix, key);
          weight = is_used ? power_of_two(fmaf(weight, scale, -own.lse.of(lane)[half])) : 0.0F;
        }
      }
    }
  });
}

template <class S, class T>
PAPERLAB_HD void query_step(T& team, QueryMemory<S>& memory, const AttentionLaunch& of,
                            std::int64_t step) {
  using Lanes = typename T::Lanes;
  using E = typename S::Element;
  const QueryLoop& loop = memory.loop;
  const Bits* key = memory.key[step % 2];
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    load_query_keys<S>(warp, number, memory.value, of, loop, step, true);
    clear(warp, own.weights);
    multiply_rows<E, S::kWidth>(warp, memory.query, 16 * number, key, 0, own.weights);
    weigh_rows<S>(warp, number, memory, step, own);
    warp.wait();
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    if (step + 1 < loop.steps.count) {
      load_query_keys<S>(warp, number, memory.key[(step + 1) % 2], of, loop, step + 1, false);
    }
    Sums<Lanes> products[1][S::kKeys / 8];
    clear(warp, products);
    multiply_rows<E, S::kWidth>(warp, memory.grad, 16 * number, memory.value, 0, products);
    warp.lanes([&](int lane) {
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kKeys / 8; ++n) {
        PAPERLAB_UNROLL
        for (int i = 0; i < 4; ++i) {
          own.weights[0][n].of(lane)[i] *= products[0][n].of(lane)[i] - own.delta.of(lane)[i / 2];
        }
      }
    });
    multiply_columns<E, S::kWidth>(warp, own.weights, key, 0, own.query);
    warp.wait();
  });
}

template <class S, class T>
PAPERLAB_HD void store_query(T& team, QueryMemory<S>& memory, const BackwardLaunch& launch) {
  using Lanes = typename T::Lanes;
  const AttentionLaunch& of = launch.attention;
  const QueryLoop& loop = memory.loop;
  const auto scale = static_cast<float>(of.in.scale);
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    store_sums<typename S::Element, S::kWidth>(warp, own.query, memory.query, 16 * number,
                                               [=](int, int, int) { return scale; });
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    store_tile<S::kWidth, kOwnRows>(warp, number, memory.query, of.in.query.size[3],
                                    launch.is_whole_gradient, [&](int row) -> Bits* {
                                      return row < loop.tile.count
                                                 ? unit_row<Bits>(loop.pass.to, of, loop.tile.place,
                                                                  loop.tile.first + row)
                                                 : nullptr;
                                    });
  });
}

// Gradient of tile `index` of queries.
template <class S, class T>
PAPERLAB_HD void query_block(T& team, QueryMemory<S>& memory, const BackwardLaunch& launch,
                             std::int64_t index) {
  for (int pass = 0; pass < num_query_passes(launch); ++pass) {
    begin_query<S>(team, memory, launch, index, pass);
    for (std::int64_t step = 0; step < memory.loop.steps.count; ++step) {
      query_step<S>(team, memory, launch.attention, step);
    }
    store_query<S>(team, memory, launch);
  }
}

}  // namespace paperlab::kernels
