#pragma once
// The forward pass of some row tiles of a unit: one online softmax over both key streams.
// Include only from cpu.cpp or cpu_bfloat16.cpp.

#include "kernels/attention/cpu_hidden.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

constexpr float kLowest =
    -3.402823466e38F;  // below any finite logit; -infinity - kLowest is no NaN
constexpr float kInfinity = __builtin_inff();

// What the online softmax of a tile remembers.
struct ForwardTile {
  TileRows rows;
  float* query;         // [row_words][kTileRows]
  float* prefix_query;  // may be the same
  float* out;           // [padded head_dim][kTileRows], to be divided by `sum`
  float* largest;       // [kTileRows]
  float* sum;           // [kTileRows]
};

inline std::int64_t tile_floats(std::int64_t head_dim) {
  return padded_head_dim(head_dim) * kTileRows;
}

inline std::size_t forward_scratch(std::int64_t head_dim) {
  const std::int64_t tile = tile_floats(head_dim);
  return static_cast<std::size_t>(kMaxTilesPerTask * (3 * tile + 2 * kTileRows) +
                                  2 * panel_floats(head_dim) + tile + kTileKeys * kTileRows +
                                  2 * kTileRows);
}

// A tile's rows as words along the head dimension, [row_words][kTileRows].
template <class Word>
inline float* load_query(const AttentionUnit& unit, const UnitRows& query, const TileRows& rows,
                         Scratch& scratch, float* staging) {
  float* words = scratch.take(tile_floats(unit.head_dim));
  load_tile<Word>(query, unit.rows, rows.first_row, rows.num_rows, unit.head_dim, staging);
  transpose(staging, kTileRows, row_words<Word>(unit.head_dim), words);
  return words;
}

template <class Word>
inline void start_tile(const AttentionUnit& unit, std::int64_t number, Scratch& scratch,
                       float* staging, ForwardTile& tile) {
  const std::int64_t head_dim = unit.head_dim;
  tile.rows = tile_rows(unit, number);
  tile.query = load_query<Word>(unit, unit.query, tile.rows, scratch, staging);
  tile.prefix_query = unit.prefix_query.data == unit.query.data
                          ? tile.query
                          : load_query<Word>(unit, unit.prefix_query, tile.rows, scratch, staging);
  tile.out = scratch.take(tile_floats(head_dim));
  fill(tile.out, tile_floats(head_dim), 0.0F);
  tile.largest = scratch.take(kTileRows);
  fill(tile.largest, kTileRows, kLowest);
  tile.sum = scratch.take(kTileRows);
  fill(tile.sum, kTileRows, 0.0F);
}

// Masks the logits of unseen keys and finds the largest of the others.
inline void mask_logits(const BlockMask& mask, std::int64_t num_vectors, float* logits,
                        float* largest) {
  for (std::int64_t v = 0; v < num_vectors; ++v) {
    VecF most = load(largest + v * kFloatLanes);
    for (std::int64_t n = 0; n < mask.limits.of[v]; ++n) {
      float* at = logits + n * kTileRows + v * kFloatLanes;
      const VecF x = where_seen(mask, v, n, load(at), set1(-kInfinity));
      most = max(x, most);
      store(at, x);
    }
    store(largest + v * kFloatLanes, most);
  }
}

// Logits to weights, exp(logit - largest), as words along the keys in the same place. `keep`
// becomes what earlier sums are multiplied by.
template <class Word>
inline void to_weights(const Limits& limits, std::int64_t num_vectors, const float* block_largest,
                       float* weights, ForwardTile& tile, float* keep) {
  for (std::int64_t v = 0; v < num_vectors; ++v) {
    const std::int64_t lane = v * kFloatLanes;
    const VecF before = load(tile.largest + lane);
    const VecF largest = load(block_largest + lane);
    const std::int64_t limit = limits.of[v];
    VecF sum = zero();
    for (std::int64_t n = 0; n < limit; n += Word::kNumbers) {
      const float* logits = weights + n * kTileRows + lane;
      const VecF weight = exp(load(logits) - largest);
      sum += weight;
      if constexpr (Word::kNumbers == 1) {
        store(weights + n * kTileRows + lane, weight);
      } else {
        const VecF next = n + 1 < limit ? exp(load(logits + kTileRows) - largest) : zero();
        sum += next;
        store(weights + n / 2 * kTileRows + lane, bfloat16_pairs(weight, next));
      }
    }
    const VecF factor = exp(before - largest);
    store(tile.sum + lane, fma(load(tile.sum + lane), factor, sum));
    store(tile.largest + lane, largest);
    store(keep + lane, factor);
  }
}

// One key block for one tile. The panels begin with `part`; logits is [kTileKeys][kTileRows].
template <class Word>
inline void attend(const AttentionUnit& unit, const KeyBlock& part, const Panel& key,
                   const Panel& value, ForwardTile& tile, float* logits, float* vectors) {
  const BlockMask mask = block_mask(tile.rows, part);
  const std::int64_t num_vectors = tile.rows.num_vectors;
  float* largest = vectors;
  float* keep = vectors + kTileRows;
  copy_row(tile.largest, kTileRows, largest);
  // Logits of unseen keys must not raise the maximum: it is taken after masking.
  dot_products<Word>(key.row, key.stride, part.end - part.begin,
                     part.is_prefix ? tile.prefix_query : tile.query,
                     num_words<Word>(unit.head_dim), unit.scale, mask.limits, num_vectors, logits,
                     mask.is_needed ? keep : largest);
  if (mask.is_needed) {
    mask_logits(mask, num_vectors, logits, largest);
  }
  to_weights<Word>(mask.limits, num_vectors, largest, logits, tile, keep);
  weighted_block<Word>(mask, value, part.end - part.begin, unit.head_dim, logits, num_vectors, keep,
                       tile.out);
}

inline void finish_tile(const ForwardTask& task, ForwardTile& tile, float* staging) {
  const AttentionUnit& unit = task.unit;
  const std::int64_t width = padded_head_dim(unit.head_dim);
  float lse[kTileRows];
  for (std::int64_t v = 0; v < tile.rows.num_vectors; ++v) {
    const std::int64_t lane = v * kFloatLanes;
    const VecF sum = load(tile.sum + lane);
    const auto is_empty = sum == zero();
    const VecF inverse = is_empty ? zero() : 1.0F / sum;
    for (std::int64_t d = 0; d < unit.head_dim; ++d) {
      float* at = tile.out + d * kTileRows + lane;
      store(at, load(at) * inverse);
    }
    const VecF natural = load(tile.largest + lane) + log(sum) + (sum - sum);
    store(lse + lane, is_empty ? set1(-kInfinity) : natural);
  }
  transpose(tile.out, width, kTileRows, staging);
  store_tile(staging, unit.rows, tile.rows.first_row, tile.rows.num_rows, unit.head_dim, task.out);
  for (std::int64_t r = 0; r < tile.rows.num_rows; ++r) {
    task.lse[element_of(unit.rows, tile.rows.first_row + r, unit.num_queries, 1)] = lse[r];
  }
}

// The keys of `block` that some tile of the task sees; tiles are in the order of their rows.
inline KeyBlock seen_by_task(const KeyBlock& block, const ForwardTile& first,
                             const ForwardTile& last) {
  return seen_part(block, tile_keys(first.rows.keys.any, last.rows.keys.any));
}

template <class Word>
inline void forward(const ForwardTask& task, float* memory) {
  const AttentionUnit& unit = task.unit;
  Scratch scratch(memory);
  float* staging = scratch.take(tile_floats(unit.head_dim));
  float* logits = scratch.take(kTileKeys * kTileRows);
  float* vectors = scratch.take(2 * kTileRows);
  float* key_memory = scratch.take(panel_floats(unit.head_dim));
  float* value_memory = scratch.take(panel_floats(unit.head_dim));
  ForwardTile tiles[kMaxTilesPerTask];
  for (std::int64_t i = 0; i < task.num_tiles; ++i) {
    start_tile<Word>(unit, task.first_tile + i, scratch, staging, tiles[i]);
  }
  const std::int64_t last_block = num_blocks(unit.num_prefix) + num_blocks(unit.num_keys);
  for (std::int64_t i = 0; i < last_block; ++i) {
    const KeyBlock block = seen_by_task(block_at(i, unit.num_prefix, unit.num_keys), tiles[0],
                                        tiles[task.num_tiles - 1]);
    if (block.begin >= block.end) {
      continue;
    }
    const Panel key = dimension_panel<Word>(block.is_prefix ? unit.prefix_key : unit.key,
                                            block.begin, block.end, unit.head_dim, key_memory);
    const Panel value = key_panel<Word>(block.is_prefix ? unit.prefix_value : unit.value,
                                        block.begin, block.end, unit.head_dim, value_memory);
    for (std::int64_t t = 0; t < task.num_tiles; ++t) {
      const KeyBlock seen = seen_part(block, tiles[t].rows.keys);
      if (seen.begin < seen.end) {
        const KeyBlock part = begun_at_word<Word>(seen, block);
        const std::int64_t skipped = part.begin - block.begin;
        attend<Word>(unit, part, from_key(key, skipped), from_key(value, skipped / Word::kNumbers),
                     tiles[t], logits, vectors);
      }
    }
  }
  for (std::int64_t t = 0; t < task.num_tiles; ++t) {
    finish_tile(task, tiles[t], staging);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
