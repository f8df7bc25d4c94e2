#pragma once
// How attention is cut into units, tiles, blocks and tasks: arithmetic of shapes alone, shared by
// the CPU and CUDA paths, so that a result does not depend on who computes it or on how many.

#include <cstdint>

#include "kernels/attention/key_rule.h"
#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

constexpr std::int64_t kMaxHeadDim = 256;

// 64 rows x 64 keys of float32 are 16 KiB: half of the smallest level-1 cache. Four AVX-512 vectors
// of rows and six keys make 24 accumulators.
constexpr std::int64_t kTileRows = 64;
constexpr std::int64_t kTileKeys = 64;
// Row tiles that use a key block while it lies in the cache (forward).
constexpr std::int64_t kMaxTilesPerTask = 4;
// Key blocks that use a row tile while it lies in the cache (backward).
constexpr std::int64_t kBlocksPerPass = 4;
// Private copies of the query's gradient.
constexpr std::int64_t kMaxKeyChunks = 4;
// Tasks that keep many threads evenly busy.
constexpr std::int64_t kManyTasks = 32;

PAPERLAB_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
PAPERLAB_HD constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
PAPERLAB_HD constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// A unit is a set of query heads that share key, value and prefix: its rows are one matrix. Row r
// is query r / heads of the unit's head r % heads, so that positions never decrease.
struct RowLayout {
  std::int64_t heads_per_unit;
  std::int64_t num_units;  // of a batch row
  std::int64_t units_per_key_head;
  std::int64_t num_rows;   // of a unit
  std::int64_t num_tiles;  // of a unit
};

// num_prefix_heads: 0 without a prefix.
PAPERLAB_HD constexpr RowLayout row_layout(std::int64_t num_heads, std::int64_t num_key_heads,
                                           std::int64_t num_prefix_heads,
                                           std::int64_t num_queries) {
  const std::int64_t share = num_heads == 0 ? 1 : num_heads / num_key_heads;
  const bool is_shared = num_prefix_heads == 0 || num_prefix_heads == num_key_heads;
  const std::int64_t heads = is_shared ? share : 1;
  const std::int64_t rows = num_queries * heads;
  return {heads, num_heads / heads, share / heads, rows, ceil_div(rows, kTileRows)};
}

// What the rows of a tile see: `any` row some of it, `all` rows all of it.
struct TileKeys {
  VisibleKeys any;
  VisibleKeys all;  // may be empty: begin >= end
};

// first and last: what the tile's first and last row see.
PAPERLAB_HD constexpr TileKeys tile_keys(const VisibleKeys& first, const VisibleKeys& last) {
  return {{last.prefix_end, first.begin, last.end}, {first.prefix_end, last.begin, first.end}};
}

// A run of keys begin..end-1 of one stream, at most kTileKeys long.
struct KeyBlock {
  bool is_prefix;
  std::int64_t begin;
  std::int64_t end;
};

// Blocks are cut at multiples of kTileKeys of each stream, whatever a tile sees of them: the prefix
// stream's first, then the raw keys'.
PAPERLAB_HD constexpr std::int64_t num_blocks(std::int64_t num_keys) {
  return ceil_div(num_keys, kTileKeys);
}
PAPERLAB_HD constexpr KeyBlock block_at(std::int64_t index, std::int64_t num_prefix,
                                        std::int64_t num_keys) {
  const std::int64_t prefix_blocks = num_blocks(num_prefix);
  const bool is_prefix = index < prefix_blocks;
  const std::int64_t begin = (is_prefix ? index : index - prefix_blocks) * kTileKeys;
  return {is_prefix, begin, smaller(begin + kTileKeys, is_prefix ? num_prefix : num_keys)};
}

// The part of `block` that some row of the tile sees; empty where begin >= end.
PAPERLAB_HD constexpr KeyBlock seen_part(const KeyBlock& block, const TileKeys& keys) {
  return block.is_prefix ? KeyBlock{true, block.begin, smaller(block.end, keys.any.prefix_end)}
                         : KeyBlock{false, larger(block.begin, keys.any.begin),
                                    smaller(block.end, keys.any.end)};
}

// Whether every row of the tile sees all of `block`: no mask is needed.
PAPERLAB_HD constexpr bool is_seen_by_all(const KeyBlock& block, const TileKeys& keys) {
  return block.is_prefix ? block.end <= keys.all.prefix_end
                         : block.begin >= keys.all.begin && block.end <= keys.all.end;
}

// How many keys of `part`, counted from its first, a row whose stream ends at `row_end` can see.
PAPERLAB_HD constexpr std::int64_t seen_keys(std::int64_t row_end, const KeyBlock& part) {
  return smaller(larger(row_end - part.begin, 0), part.end - part.begin);
}

// Row tiles of one forward task: as many as leave enough tasks for all threads.
PAPERLAB_HD constexpr std::int64_t tiles_per_task(std::int64_t num_units, std::int64_t num_tiles) {
  std::int64_t tiles = kMaxTilesPerTask;
  while (tiles > 1 && num_units * ceil_div(num_tiles, tiles) < kManyTasks) {
    tiles /= 2;
  }
  return tiles;
}

// Chunks into which the key blocks of a key head are cut for the backward pass.
PAPERLAB_HD constexpr std::int64_t num_key_chunks(std::int64_t num_key_heads,
                                                  std::int64_t num_key_blocks) {
  const std::int64_t wanted = num_key_heads >= 16 ? 1 : num_key_heads >= 8 ? 2 : kMaxKeyChunks;
  return larger(1, smaller(wanted, num_key_blocks));
}

// The chunk of a block when `before` of `total` work lies in the blocks before it.
PAPERLAB_HD constexpr std::int64_t chunk_of(std::int64_t before, std::int64_t work,
                                            std::int64_t total, std::int64_t num_chunks) {
  return total == 0 ? 0 : smaller((2 * before + work) * num_chunks / (2 * total), num_chunks - 1);
}

// A single query is split over its keys: runs of kTileKeys blocks of about 256 KiB of float32 keys,
// at most 64 of them. The split depends on the stream's length and the head size alone.
PAPERLAB_HD constexpr std::int64_t decode_run(std::int64_t num_keys, std::int64_t head_dim) {
  const std::int64_t wanted = larger(ceil_div(65536, head_dim), ceil_div(num_keys, 64));
  return ceil_div(wanted, kTileKeys) * kTileKeys;
}
PAPERLAB_HD constexpr std::int64_t num_decode_runs(std::int64_t num_keys, std::int64_t head_dim) {
  return ceil_div(num_keys, decode_run(num_keys, head_dim));
}

}  // namespace paperlab::kernels
