#pragma once
// The forward pass on Hopper in bfloat16 and float16: a block takes 128 rows through steps of 128
// keys. One warpgroup feeds a ring of key and value tiles, most of them by the copy engine; two
// take 64 rows each, with products by the warpgroup. While a group's weights and values of a step
// are multiplied, it has the scores of the next one and makes weights of them. Rounding is that of
// block_forward.h.

#include "kernels/attention/block_forward.h"
#include "kernels/common/cuda/wgmma.h"

namespace paperlab::kernels {

// kWidth: D padded to 64 or 128.
template <class E, int kWidth_>
struct HopperShape {
  using Element = E;
  static constexpr int kWidth = kWidth_;
  static constexpr int kPanels = kWidth / kBoxColumns;  // tiles are panels of 64 columns
  static constexpr int kReaders = 2;                    // groups that have rows; they take turns
  static constexpr int kRows = kReaders * kGroupRows;
  static constexpr int kKeys = 128;
  static constexpr int kKeyTiles = kKeys / 8;
  static constexpr int kStages = 2;
  static constexpr int kThreads = (1 + kReaders) * kGroup;
  static constexpr int kTileBytes = 2 * kKeys * kWidth;
  // Of a thread; together those of the launch, 168 each.
  static constexpr int kFeederRegisters = 40;
  static constexpr int kReaderRegisters = 232;
};
static_assert(kBlockLanes == kGroup, "a group copies tiles like a block of block_tiles.h");

// Tensor maps or, on the host, the tensors.
template <class Map>
struct KeyMaps {
  Map key;
  Map value;
  Map prefix_key;
  Map prefix_value;
};

// Of one ring of tiles: a phase of `filled` ends with one arrival and the copied bytes, one of
// `freed` with those of all warps that read.
template <class S>
struct RingBarriers {
  Barrier filled[S::kStages];
  Barrier freed[S::kStages];
};

template <class S>
struct alignas(kSwizzleBytes) HopperMemory {
  Bits query[S::kReaders][kGroupRows * S::kWidth];  // then the results
  Bits key[S::kStages][S::kKeys * S::kWidth];
  Bits value[S::kStages][S::kKeys * S::kWidth];
  RingBarriers<S> keys;
  RingBarriers<S> values;
  RowLimits limits[S::kRows];
  ForwardLoop loop;
  int key_head;
  int prefix_head;
};

// init(barrier, arrivals) makes one ready.
template <class S, class Init>
PAPERLAB_HD void begin_ring(RingBarriers<S>& ring, Init init) {
  for (int stage = 0; stage < S::kStages; ++stage) {
    init(ring.filled[stage], 1);
    init(ring.freed[stage], S::kReaders * kGroup / kWarp);
  }
}

// The unit's head of a stream; 0 without one.
PAPERLAB_HD inline int stream_head(const AttentionLaunch& of, UnitPlace place,
                                   const ConstTensorView& key) {
  return key.data == nullptr ? 0
                             : static_cast<int>(place.unit * of.rows.heads_per_unit /
                                                (of.in.query.size[1] / key.size[1]));
}

// What all groups know. The team has all threads of block `index`.
template <class S, class T, class Init>
PAPERLAB_HD void begin_hopper(T& team, HopperMemory<S>& memory, const ForwardLaunch& launch,
                              std::int64_t index, Init init) {
  const AttentionLaunch& of = launch.attention;
  team.each([&](int thread, auto&) {
    if (thread == 0) {
      memory.loop = forward_loop(of, forward_task(launch, index, S::kRows), S::kKeys);
      memory.key_head = stream_head(of, memory.loop.task.tile.place, of.in.key);
      memory.prefix_head = stream_head(of, memory.loop.task.tile.place, of.in.prefix_key);
    } else if (thread == kWarp) {
      begin_ring<S>(memory.keys, init);
      begin_ring<S>(memory.values, init);
      show_barriers();
    }
  });
}

// --- the group that feeds ----------------------------------------------------------------------

// Where a step's keys or values lie.
struct StreamPlace {
  KeyBlock block;
  KeyBlock part;  // that some row sees
  int head;
  int batch;
};

template <class S>
PAPERLAB_HD StreamPlace stream_place(const HopperMemory<S>& memory, int step) {
  const ForwardLoop& loop = memory.loop;
  const KeyBlock block = step_block(loop.steps, step, S::kKeys);
  return {block, part_of(block, loop.task.span),
          block.is_prefix ? memory.prefix_head : memory.key_head,
          static_cast<int>(loop.task.tile.place.batch)};
}

// Whether a box brings what rows see and zeros: it ends with the block or with the tensor.
PAPERLAB_HD constexpr bool is_box(const StreamPlace& place, std::int64_t num_keys) {
  return place.part.begin == place.block.begin &&
         (place.part.end == place.block.end || place.part.end == num_keys);
}

// By one thread.
template <class S, class Group, class Map>
PAPERLAB_HD void fetch_tile(const Group& group, const Map& map, const StreamPlace& place,
                            Bits* tile, Barrier& filled) {
  group.expect(filled, S::kTileBytes);
  PAPERLAB_UNROLL
  for (int panel = 0; panel < S::kPanels; ++panel) {
    group.fetch(map,
                {kBoxColumns * panel, static_cast<int>(place.block.begin), place.head, place.batch},
                tile + panel * S::kKeys * kBoxColumns, filled);
  }
}

// By all threads: the values of `part`, and zeros, since a weight of zero does not hide what is no
// number. A thread has one chunk of every sixteenth row: each lies 16 rows on, swizzled alike.
template <class S, class Group>
PAPERLAB_HD void copy_values(Group& group, const KeyStream<Bits>& keys, const StreamPlace& place,
                             std::int64_t head_dim, Bits* tile) {
  constexpr int kChunks = kBoxColumns / kChunk;
  constexpr int kStride = kGroup / kChunks;
  static_assert(kStride % 8 == 0);
  group.lanes([&](int thread) {
    const auto begin = static_cast<int>(place.part.begin - place.block.begin);
    const auto end = static_cast<int>(place.part.end - place.block.begin);
    PAPERLAB_NO_UNROLL
    for (int panel = 0; panel < S::kPanels; ++panel) {
      const int column = panel * kBoxColumns + thread % kChunks * kChunk;
      const Bits* from =
          keys.value + (place.block.begin + thread / kChunks) * keys.value_stride + column;
      int to = panel * S::kKeys * kBoxColumns +
               chunk_at(thread / kChunks, thread % kChunks, kBoxColumns);
      PAPERLAB_NO_UNROLL
      for (int row = thread / kChunks; row < S::kKeys; row += kStride) {
        const bool is_there = row >= begin && row < end && column < head_dim;
        group.copy(tile, to, is_there ? from : keys.value, is_there);
        from += kStride * keys.value_stride;
        to += kStride * kBoxColumns;
      }
    }
  });
}

// Every tile of keys or values goes where the readers have freed its place. Thread 0 alone waits
// for them: the others may be steps behind or ahead, where a parity would deceive them. A key
// outside the part is masked.
template <class S, class Group, class Map>
PAPERLAB_HD void feed_readers(Group& group, HopperMemory<S>& memory, const AttentionLaunch& of,
                              const KeyMaps<Map>& maps) {
  const ForwardLoop& loop = memory.loop;
  PAPERLAB_NO_UNROLL
  for (int step = 0; step < loop.count; ++step) {
    const RingPlace at = ring_place(step, S::kStages);
    const StreamPlace place = stream_place<S>(memory, step);
    const bool is_prefix = place.block.is_prefix;
    const bool is_whole = is_box(place, is_prefix ? of.in.prefix_key.size[2] : of.in.key.size[2]);
    Barrier& filled = memory.values.filled[at.stage];
    group.lanes([&](int thread) {
      if (thread == 0) {
        group.await(memory.keys.freed[at.stage], at.freed);
        fetch_tile<S>(group, is_prefix ? maps.prefix_key : maps.key, place, memory.key[at.stage],
                      memory.keys.filled[at.stage]);
        group.await(memory.values.freed[at.stage], at.freed);
        if (is_whole) {
          fetch_tile<S>(group, is_prefix ? maps.prefix_value : maps.value, place,
                        memory.value[at.stage], filled);
        }
      }
    });
    if (!is_whole) {
      group.sync();  // what thread 0 waited for holds for all
      copy_values<S>(group, is_prefix ? loop.prefix : loop.raw, place, of.in.query.size[3],
                     memory.value[at.stage]);
      group.show();
      group.lanes([&](int thread) {
        if (thread == 0) {
          group.arrive(filled);
        }
      });
    }
  }
}

}  // namespace paperlab::kernels
