#pragma once
// What a block of GPU threads works on: rows of a unit, the keys that they see, and the steps in
// which it goes through them. Host-device arithmetic of shapes alone.

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/tile.h"

namespace paperlab::kernels {

// Quotients by a number d that the host knows: n / d = n m / 2^(31 + k) with 2^(k - 1) < d <= 2^k
// and m = floor(2^(31 + k) / d) + 1, exact for n < 2^31 because n (m d - 2^(31 + k)) <= n d < 2^(31
// + k).
struct Divider {
  PAPERLAB_HD static constexpr Divider by(std::int64_t d) {
    int k = 0;
    while (std::int64_t{1} << k < d) {
      ++k;
    }
    return {static_cast<std::uint32_t>(d),
            static_cast<std::uint32_t>(
                (std::uint64_t{1} << (31 + k)) / static_cast<std::uint64_t>(d) + 1),
            31 + k};
  }
  PAPERLAB_HD constexpr int quotient(int n) const {
    return static_cast<int>(static_cast<std::uint64_t>(n) * factor >> shift);
  }
  PAPERLAB_HD constexpr int remainder(int n) const {
    return n - quotient(n) * static_cast<int>(divisor);
  }

  std::uint32_t divisor = 1;
  std::uint32_t factor = 0;
  int shift = 0;
};

// Of one call. Pointers are of the memory that the block reads: the device's, in tests the host's.
// Rows of a unit are fewer than 2^31.
struct AttentionLaunch {
  AttentionInputs in;
  RowLayout rows;
  Divider heads;  // of a unit: row r is query r / heads of head r % heads
  bool is_whole;  // the rows of all tensors are aligned packs of 16 bytes
};

PAPERLAB_HD constexpr std::int64_t num_prefix_of(const AttentionInputs& in) {
  return in.prefix_key.data == nullptr ? 0 : in.prefix_key.size[2];
}

PAPERLAB_HD inline AttentionLaunch attention_launch(const AttentionInputs& in, bool is_whole) {
  const std::int64_t prefix_heads = in.prefix_key.data == nullptr ? 0 : in.prefix_key.size[1];
  const RowLayout rows =
      row_layout(in.query.size[1], in.key.size[1], prefix_heads, in.query.size[2]);
  return {in, rows, Divider::by(rows.heads_per_unit), is_whole};
}

// A unit of a batch row.
struct UnitPlace {
  std::int64_t batch;
  std::int64_t unit;
};

// Rows first..first + count - 1 of a unit.
struct RowTile {
  UnitPlace place;
  std::int64_t first;
  int count;
};

PAPERLAB_HD inline std::int64_t num_row_tiles(const AttentionLaunch& launch, int tile_rows) {
  return launch.in.query.size[0] * launch.rows.num_units *
         ceil_div(launch.rows.num_rows, std::int64_t{tile_rows});
}

// Block `index` of num_row_tiles: units of a key head next to each other, and the
// tiles that see most first.
PAPERLAB_HD inline RowTile row_tile(const AttentionLaunch& launch, std::int64_t index,
                                    int tile_rows) {
  const std::int64_t units = launch.rows.num_units * launch.in.query.size[0];
  const std::int64_t num_tiles = ceil_div(launch.rows.num_rows, tile_rows);
  const std::int64_t first = (num_tiles - 1 - index / units) * tile_rows;
  const std::int64_t place = index % units;
  return {{place / launch.rows.num_units, place % launch.rows.num_units},
          first,
          static_cast<int>(smaller(tile_rows, launch.rows.num_rows - first))};
}

// The address of row `row` of a unit in a tensor [B, H, T, D].
template <class E, class View>
PAPERLAB_HD E* unit_row(const View& view, const AttentionLaunch& launch, UnitPlace place,
                        std::int64_t row) {
  const int query = launch.heads.quotient(static_cast<int>(row));
  const std::int64_t head = (place.unit - query) * launch.rows.heads_per_unit + row;
  return static_cast<E*>(view.data) + place.batch * view.stride[0] + head * view.stride[1] +
         query * view.stride[2];
}

// Its place in an array [B, H, T].
PAPERLAB_HD inline std::int64_t statistic_at(const AttentionLaunch& launch, UnitPlace place,
                                             std::int64_t row) {
  const int query = launch.heads.quotient(static_cast<int>(row));
  const std::int64_t head = (place.unit - query) * launch.rows.heads_per_unit + row;
  return (place.batch * launch.in.query.size[1] + head) * launch.in.query.size[2] + query;
}

// One stream of a unit: keys and values as rows.
template <class E>
struct KeyStream {
  const E* key;
  const E* value;
  std::int64_t key_stride;
  std::int64_t value_stride;
};

template <class E>
PAPERLAB_HD KeyStream<E> key_stream(const AttentionLaunch& launch, UnitPlace place,
                                    bool is_prefix) {
  const AttentionInputs& in = launch.in;
  const ConstTensorView& key = is_prefix ? in.prefix_key : in.key;
  const ConstTensorView& value = is_prefix ? in.prefix_value : in.value;
  const std::int64_t head =
      place.unit * launch.rows.heads_per_unit / (in.query.size[1] / key.size[1]);
  return {
      static_cast<const E*>(key.data) + place.batch * key.stride[0] + head * key.stride[1],
      static_cast<const E*>(value.data) + place.batch * value.stride[0] + head * value.stride[1],
      key.stride[2], value.stride[2]};
}

// Values of key_start and key_end outside 0..S + num_past count as the nearest inside: the GPU's
// cannot be checked before they are used.
PAPERLAB_HD inline VisibleKeys keys_of_row(const AttentionLaunch& launch, std::int64_t batch,
                                           std::int64_t row) {
  const AttentionInputs& in = launch.in;
  const std::int64_t length = in.rule.num_past + in.key.size[2];
  const std::int64_t start =
      in.key_start == nullptr ? 0 : smaller(larger(in.key_start[batch], 0), length);
  const std::int64_t end =
      in.key_end == nullptr ? length : smaller(larger(in.key_end[batch], 0), length);
  const int t = launch.heads.quotient(static_cast<int>(row));
  VisibleKeys keys = in.rule.visible(
      in.rule.num_past + key_position(t, in.query.size[2], in.key.size[2]), start, end);
  keys.prefix_end = smaller(keys.prefix_end, num_prefix_of(in));
  return keys;
}

PAPERLAB_HD inline TileKeys keys_of_tile(const AttentionLaunch& launch, const RowTile& tile) {
  return tile_keys(keys_of_row(launch, tile.place.batch, tile.first),
                   keys_of_row(launch, tile.place.batch, tile.first + tile.count - 1));
}

// What a row sees, for comparisons with key numbers.
struct RowLimits {
  int prefix_end;
  int begin;
  int end;

  PAPERLAB_HD constexpr bool sees(bool is_prefix, int key) const {
    return is_prefix ? key < prefix_end : key >= begin && key < end;
  }
};

PAPERLAB_HD inline RowLimits limits_of(const VisibleKeys& keys) {
  return {static_cast<int>(keys.prefix_end), static_cast<int>(keys.begin),
          static_cast<int>(keys.end)};
}

// ---------------------------------------------------------------------------------------------

// Keys of both streams, each a range.
struct KeySpan {
  std::int64_t prefix_begin;
  std::int64_t prefix_end;
  std::int64_t begin;
  std::int64_t end;
};

PAPERLAB_HD constexpr KeySpan span_of(const VisibleKeys& keys) {
  return {0, keys.prefix_end, keys.begin, keys.end};
}

// The steps of a span: blocks of kStep keys cut at multiples of kStep, the prefix stream's first.
struct KeySteps {
  std::int64_t first_prefix;
  std::int64_t num_prefix;
  std::int64_t first_raw;
  std::int64_t count;
};

PAPERLAB_HD constexpr KeySteps key_steps(const KeySpan& span, std::int64_t step) {
  const std::int64_t first_prefix = span.prefix_begin / step;
  const std::int64_t first_raw = span.begin / step;
  const std::int64_t num_prefix =
      span.prefix_begin < span.prefix_end ? ceil_div(span.prefix_end, step) - first_prefix : 0;
  const std::int64_t num_raw = span.begin < span.end ? ceil_div(span.end, step) - first_raw : 0;
  return {first_prefix, num_prefix, first_raw, num_prefix + num_raw};
}

// The whole block of a step; its keys outside the span are not to be read.
PAPERLAB_HD constexpr KeyBlock step_block(const KeySteps& steps, std::int64_t i,
                                          std::int64_t step) {
  const bool is_prefix = i < steps.num_prefix;
  const std::int64_t number =
      is_prefix ? steps.first_prefix + i : steps.first_raw + i - steps.num_prefix;
  return {is_prefix, number * step, (number + 1) * step};
}

PAPERLAB_HD constexpr KeyBlock part_of(const KeyBlock& block, const KeySpan& span) {
  return {block.is_prefix, larger(block.begin, block.is_prefix ? span.prefix_begin : span.begin),
          smaller(block.end, block.is_prefix ? span.prefix_end : span.end)};
}

// ---------------------------------------------------------------------------------------------

// Few queries are split over their keys: runs that depend on the lengths and the head size alone.
constexpr std::int64_t kMaxDecodeRows = 64;  // of a unit

PAPERLAB_HD constexpr std::int64_t run_length(std::int64_t num_keys, std::int64_t head_dim) {
  const std::int64_t wanted = larger(ceil_div(32768, head_dim), ceil_div(num_keys, 128));
  return ceil_div(wanted, kTileKeys) * kTileKeys;
}
PAPERLAB_HD constexpr std::int64_t num_runs(std::int64_t num_keys, std::int64_t head_dim) {
  return ceil_div(num_keys, run_length(num_keys, head_dim));
}

// Runs of both streams, the prefix's first.
struct KeyRuns {
  PAPERLAB_HD constexpr KeyRuns(std::int64_t num_prefix, std::int64_t num_keys,
                                std::int64_t head_dim)
      : prefix_length(run_length(num_prefix, head_dim)),
        raw_length(run_length(num_keys, head_dim)),
        prefix(num_runs(num_prefix, head_dim)),
        count(prefix + num_runs(num_keys, head_dim)) {}

  // The part of `keys` that lies in run i.
  PAPERLAB_HD constexpr KeySpan part(std::int64_t i, const VisibleKeys& keys) const {
    if (i < prefix) {
      return {i * prefix_length, smaller((i + 1) * prefix_length, keys.prefix_end), 0, 0};
    }
    const std::int64_t begin = (i - prefix) * raw_length;
    return {0, 0, larger(begin, keys.begin), smaller(begin + raw_length, keys.end)};
  }

  std::int64_t prefix_length;
  std::int64_t raw_length;
  std::int64_t prefix;
  std::int64_t count;
};

// ---------------------------------------------------------------------------------------------

// Tiles first..last - 1 of tile_rows rows of which some row sees a key of `block`: what rows see
// begins and ends later from row to row, so that they are neighbours.
struct TileRange {
  std::int64_t first;
  std::int64_t last;
};

PAPERLAB_HD inline RowTile tile_number(const AttentionLaunch& launch, UnitPlace place,
                                       std::int64_t number, int tile_rows) {
  const std::int64_t first = number * tile_rows;
  return {place, first, static_cast<int>(smaller(tile_rows, launch.rows.num_rows - first))};
}

// The first tile whose last row sees keys beyond block.begin.
PAPERLAB_HD inline std::int64_t first_tile(const AttentionLaunch& launch, UnitPlace place,
                                           const KeyBlock& block, int tile_rows) {
  std::int64_t low = 0;
  std::int64_t high = ceil_div(launch.rows.num_rows, tile_rows);
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    const std::int64_t row = smaller((middle + 1) * tile_rows, launch.rows.num_rows) - 1;
    const VisibleKeys keys = keys_of_row(launch, place.batch, row);
    if ((block.is_prefix ? keys.prefix_end : keys.end) > block.begin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The first tile whose first row sees no key of the block any more.
PAPERLAB_HD inline std::int64_t last_tile(const AttentionLaunch& launch, UnitPlace place,
                                          const KeyBlock& block, int tile_rows) {
  std::int64_t low = 0;
  std::int64_t high = ceil_div(launch.rows.num_rows, tile_rows);
  while (!block.is_prefix && low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (keys_of_row(launch, place.batch, middle * tile_rows).begin >= block.end) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return high;
}

PAPERLAB_HD inline TileRange tiles_of(const AttentionLaunch& launch, UnitPlace place,
                                      const KeyBlock& block, int tile_rows) {
  return {first_tile(launch, place, block, tile_rows), last_tile(launch, place, block, tile_rows)};
}

}  // namespace paperlab::kernels
