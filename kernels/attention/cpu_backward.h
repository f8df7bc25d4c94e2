#pragma once
// The backward pass. With P = exp(S - L) recomputed from the log-sum-exp,
//   dV = P^T dO,  dS = P (dO V^T - delta),  dK = scale dS^T Q,  dQ = scale dS K,
//   delta = rowsum(dO O) - dL.
// A task owns the keys of its blocks and adds to a copy of dQ of its own. Include only from cpu.cpp
// or cpu_bfloat16.cpp.

#include "kernels/attention/cpu_decode.h"
#include "kernels/attention/cpu_forward.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A row tile as the backward pass needs it.
struct BackwardTile {
  TileRows rows;
  float* query_t;  // words along the head dimension: [row_words][kTileRows]
  float* grad_out_t;
  const float* query;  // words along the rows: [words of kTileRows][padded head_dim]
  const float* grad_out;
  float lse[kTileRows];  // +infinity where no key is seen: every weight is 0
  float delta[kTileRows];
};

// Gradients of the keys of one pass: [kBlocksPerPass * kTileKeys][padded head_dim] each.
struct KeyGradients {
  float* key;
  float* value;
};

struct BackwardMemory {
  BackwardTile tile;
  float* staging[2];  // of the tile's query and grad_out
  float* row_words[2];
  KeyGradients sums;
  float* logits;       // [kTileKeys][kTileRows]
  float* grad_logits;  // [kTileKeys][kTileRows]
  // Weights and gradients of logits as words; with float words the memory above.
  float* weights_by_row;  // [kTileKeys][words of kTileRows]
  float* grads_by_row;
  float* grads_by_key;  // [words of kTileKeys][kTileRows]
  float* vectors;       // [2 kTileRows]
  float* panels;        // kBlocksPerPass times three; with float words the third is free
};

inline std::size_t backward_scratch(std::int64_t head_dim) {
  const std::int64_t tile = tile_floats(head_dim);
  return static_cast<std::size_t>((6 + 2 * kBlocksPerPass) * tile + 5 * kTileKeys * kTileRows +
                                  2 * kTileRows + 3 * kBlocksPerPass * panel_floats(head_dim));
}

template <class Word>
inline BackwardMemory backward_memory(std::int64_t head_dim, float* memory) {
  Scratch scratch(memory);
  const std::int64_t tile = tile_floats(head_dim);
  const std::int64_t block = kTileKeys * kTileRows;
  BackwardMemory pieces;
  pieces.tile.query_t = scratch.take(tile);
  pieces.tile.grad_out_t = scratch.take(tile);
  for (std::int64_t i = 0; i < 2; ++i) {
    pieces.staging[i] = scratch.take(tile);
    pieces.row_words[i] = scratch.take(tile);
  }
  pieces.sums.key = scratch.take(kBlocksPerPass * tile);
  pieces.sums.value = scratch.take(kBlocksPerPass * tile);
  pieces.logits = scratch.take(block);
  pieces.grad_logits = scratch.take(block);
  const bool is_float = Word::kNumbers == 1;
  pieces.weights_by_row = is_float ? pieces.logits : scratch.take(block);
  pieces.grads_by_row = is_float ? pieces.grad_logits : scratch.take(block);
  pieces.grads_by_key = is_float ? pieces.grad_logits : scratch.take(block);
  pieces.vectors = scratch.take(2 * kTileRows);
  pieces.panels = scratch.take(3 * kBlocksPerPass * panel_floats(head_dim));
  return pieces;
}

inline void delta(const DeltaTask& task, float* memory) {
  const AttentionUnit& unit = task.unit;
  const RowLayout& layout = unit.rows;
  float* grad_out = memory;
  float* out = memory + padded_head_dim(unit.head_dim);
  for (std::int64_t r = 0; r < layout.num_rows; ++r) {
    load_row(task.grad_out.data, task.grad_out.dtype,
             element_of(layout, r, task.grad_out.head_stride, task.grad_out.query_stride),
             unit.head_dim, grad_out);
    load_row(task.out.data, task.out.dtype,
             element_of(layout, r, task.out.head_stride, task.out.query_stride), unit.head_dim,
             out);
    VecF sums = zero();
    std::int64_t d = 0;
    for (; d + kFloatLanes <= unit.head_dim; d += kFloatLanes) {
      sums = fma(load(grad_out + d), load(out + d), sums);
    }
    float sum = 0.0F;
    for (std::int64_t lane = 0; lane < kFloatLanes; ++lane) {
      sum += sums[lane];
    }
    for (; d < unit.head_dim; ++d) {
      sum += grad_out[d] * out[d];
    }
    const float grad_lse =
        task.grad_lse == nullptr ? 0.0F : task.grad_lse[element_of(layout, r, unit.num_queries, 1)];
    task.delta[r] = sum - grad_lse;
  }
}

template <class Word>
inline void load_backward_tile(const AttentionUnit& unit, const UnitRows& query,
                               const UnitRows& grad_out, const float* lse, const float* delta,
                               const TileRows& rows, BackwardMemory& memory) {
  BackwardTile& tile = memory.tile;
  const std::int64_t head_dim = unit.head_dim;
  const std::int64_t width = row_words<Word>(head_dim);
  tile.rows = rows;
  load_tile<Word>(query, unit.rows, rows.first_row, rows.num_rows, head_dim, memory.staging[0]);
  load_tile<Word>(grad_out, unit.rows, rows.first_row, rows.num_rows, head_dim, memory.staging[1]);
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const bool is_present = r < rows.num_rows;
    const float value =
        is_present ? lse[element_of(unit.rows, rows.first_row + r, unit.num_queries, 1)] : 0.0F;
    const bool sees_keys = is_present && value != -kInfinity;
    tile.lse[r] = sees_keys ? value : kInfinity;
    tile.delta[r] = sees_keys ? delta[rows.first_row + r] : 0.0F;
    if (is_present && !sees_keys) {  // a NaN there must not reach the keys: 0 * NaN is no 0
      fill(memory.staging[0] + r * width, width, 0.0F);
      fill(memory.staging[1] + r * width, width, 0.0F);
    }
  }
  transpose(memory.staging[0], kTileRows, width, tile.query_t);
  transpose(memory.staging[1], kTileRows, width, tile.grad_out_t);
  tile.query = words_along_rows<Word>(memory.staging[0], head_dim, memory.row_words[0]);
  tile.grad_out = words_along_rows<Word>(memory.staging[1], head_dim, memory.row_words[1]);
}

// Of key n and the rows of a vector: the weight and the gradient of the logit; 0 where not seen.
struct Weighed {
  VecF weight;
  VecF grad;
};

inline Weighed weigh_key(const BlockMask& mask, std::int64_t v, std::int64_t n,
                         const BackwardMemory& memory) {
  if (n >= mask.limits.of[v]) {
    return {zero(), zero()};
  }
  const std::int64_t lane = v * kFloatLanes;
  const std::int64_t at = n * kTileRows + lane;
  VecF weight = exp(load(memory.logits + at) - load(memory.tile.lse + lane));
  VecF grad = load(memory.grad_logits + at) - load(memory.tile.delta + lane);
  if (mask.is_needed) {
    weight = where_seen(mask, v, n, weight, zero());
    grad = where_seen(mask, v, n, grad, zero());
  }
  return {weight, weight * grad};
}

// Logits and gradients of weights to weights and gradients of logits, as words.
template <class Word>
inline void weigh(const BlockMask& mask, std::int64_t num_keys, const BackwardMemory& memory) {
  for (std::int64_t v = 0; v < memory.tile.rows.num_vectors; ++v) {
    const std::int64_t lane = v * kFloatLanes;
    for (std::int64_t n = 0; n < num_keys; n += Word::kNumbers) {
      const Weighed key = weigh_key(mask, v, n, memory);
      if constexpr (Word::kNumbers == 1) {
        store(memory.weights_by_row + n * kTileRows + lane, key.weight);
        store(memory.grads_by_row + n * kTileRows + lane, key.grad);
      } else {
        const Weighed next = weigh_key(mask, v, n + 1, memory);
        auto* weights = reinterpret_cast<std::uint16_t*>(memory.weights_by_row);
        auto* grads = reinterpret_cast<std::uint16_t*>(memory.grads_by_row);
        store_bfloat16(weights + n * kTileRows + lane, key.weight);
        store_bfloat16(weights + (n + 1) * kTileRows + lane, next.weight);
        store_bfloat16(grads + n * kTileRows + lane, key.grad);
        store_bfloat16(grads + (n + 1) * kTileRows + lane, next.grad);
        store(memory.grads_by_key + n / 2 * kTileRows + lane, bfloat16_pairs(key.grad, next.grad));
      }
    }
  }
}

// A key block's panels, which begin with the same key.
struct KeyPanels {
  Panel key;    // words along the head dimension
  Panel value;  // words along the head dimension
  Panel key_by_key;
};

template <class Word>
inline KeyPanels from_key(const KeyPanels& panels, std::int64_t skipped) {
  return {from_key(panels.key, skipped), from_key(panels.value, skipped),
          from_key(panels.key_by_key, skipped / Word::kNumbers)};
}

// The logits of a single query's heads, summed in the order of cpu_decode.h: its log-sum-exp then
// holds the same rounding errors, which cancel in exp(logit - lse).
inline void single_query_logits(const AttentionUnit& unit, const KeyBlock& part,
                                const BackwardMemory& memory) {
  const std::int64_t width = padded_head_dim(unit.head_dim);
  const WideRows<float> keys =
      padded_rows(part.is_prefix ? unit.prefix_key : unit.key, part.begin, part.end, unit.head_dim,
                  memory.panels + 2 * panel_floats(unit.head_dim));
  float dots[kFloatLanes];
  for (std::int64_t r = 0; r < memory.tile.rows.num_rows; ++r) {
    const float* query = memory.staging[0] + r * width;
    for (std::int64_t n = 0; n < part.end - part.begin; n += kFloatLanes) {
      const std::int64_t count = smaller(part.end - part.begin - n, kFloatLanes);
      decode_dots<FloatWord, 1>(query, width, from_key(keys, n), count, unit.scale, dots);
      for (std::int64_t i = 0; i < count; ++i) {
        memory.logits[(n + i) * kTileRows + r] = dots[i];
      }
    }
  }
}

// One key block and one row tile: adds to the sums of the block's keys and to grad_query
// [padded head_dim][kTileRows]. Panels and sums begin with `part`.
template <class Word>
inline void differentiate(const AttentionUnit& unit, const KeyBlock& part, const KeyPanels& panels,
                          const BackwardMemory& memory, const KeyGradients& sums,
                          float* grad_query) {
  const BackwardTile& tile = memory.tile;
  const BlockMask mask = block_mask(tile.rows, part);
  const std::int64_t num_vectors = tile.rows.num_vectors;
  const std::int64_t num_keys = part.end - part.begin;
  const std::int64_t width = padded_head_dim(unit.head_dim);
  const std::int64_t depth = num_words<Word>(unit.head_dim);
  dot_products<Word>(panels.key.row, panels.key.stride, num_keys, tile.query_t, depth, unit.scale,
                     mask.limits, num_vectors, memory.logits, memory.vectors);
  if (Word::kNumbers == 1 && unit.num_queries == 1) {
    single_query_logits(unit, part, memory);
  }
  dot_products<Word>(panels.value.row, panels.value.stride, num_keys, tile.grad_out_t, depth, 1.0F,
                     mask.limits, num_vectors, memory.grad_logits, memory.vectors);
  weigh<Word>(mask, num_keys, memory);
  outer_sums<Word>(memory.weights_by_row, num_keys, tile.grad_out, width, mask.limits, num_vectors,
                   sums.value);
  outer_sums<Word>(memory.grads_by_row, num_keys, tile.query, width, mask.limits, num_vectors,
                   sums.key);
  fill(memory.vectors + kTileRows, kTileRows, 1.0F);
  weighted_block<Word>(mask, panels.key_by_key, num_keys, unit.head_dim, memory.grads_by_key,
                       num_vectors, memory.vectors + kTileRows, grad_query);
}

// Key blocks first..first+count-1, all of one stream, which use each row tile together.
struct Pass {
  KeyBlock whole[kBlocksPerPass];
  KeyBlock blocks[kBlocksPerPass];  // without keys out of the range, which are never read
  KeyPanels panels[kBlocksPerPass];
  std::int64_t count;
};

template <class Word>
inline Pass load_pass(const AttentionUnit& unit, std::int64_t first, std::int64_t end,
                      const BackwardMemory& memory) {
  Pass pass;
  pass.count = 0;
  const std::int64_t size = panel_floats(unit.head_dim);
  for (std::int64_t i = first; i < end && pass.count < kBlocksPerPass; ++i) {
    KeyBlock block = block_at(i, unit.num_prefix, unit.num_keys);
    if (pass.count > 0 && block.is_prefix != pass.blocks[0].is_prefix) {
      break;
    }
    const std::int64_t n = pass.count++;
    pass.whole[n] = block;
    if (!block.is_prefix) {
      block.begin = larger(block.begin, unit.key_start - unit.rule.num_past);
      block.end = larger(block.begin, smaller(block.end, unit.key_end - unit.rule.num_past));
    }
    pass.blocks[n] = block;
    const HeadRows& keys = block.is_prefix ? unit.prefix_key : unit.key;
    const HeadRows& values = block.is_prefix ? unit.prefix_value : unit.value;
    float* scratch = memory.panels + 3 * n * size;
    KeyPanels& panels = pass.panels[n];
    panels.key = dimension_panel<Word>(keys, block.begin, block.end, unit.head_dim, scratch);
    panels.value =
        dimension_panel<Word>(values, block.begin, block.end, unit.head_dim, scratch + size);
    panels.key_by_key = Word::kNumbers == 1 ? panels.key
                                            : key_panel<Word>(keys, block.begin, block.end,
                                                              unit.head_dim, scratch + 2 * size);
  }
  return pass;
}

// All row tiles of one unit against the blocks of a pass.
template <class Word>
inline void run_pass(const BackwardTask& task, const Pass& pass, std::int64_t unit_index,
                     BackwardMemory& memory) {
  const AttentionUnit& unit = task.units[unit_index];
  const bool is_prefix = pass.blocks[0].is_prefix;
  const std::int64_t size = tile_floats(unit.head_dim);
  float* grad = is_prefix ? task.grad_prefix_query : task.grad_query;
  grad += unit_index * unit.rows.num_tiles * size;
  const std::int64_t heads = unit_index * unit.rows.heads_per_unit;
  for (std::int64_t t = 0; t < unit.rows.num_tiles; ++t) {
    const TileRows rows = tile_rows(unit, t);
    bool is_loaded = false;
    for (std::int64_t i = 0; i < pass.count; ++i) {
      const KeyBlock seen = seen_part(pass.blocks[i], rows.keys);
      if (seen.begin >= seen.end) {
        continue;
      }
      if (!is_loaded) {
        load_backward_tile<Word>(unit, is_prefix ? unit.prefix_query : unit.query,
                                 task.grad_out[unit_index], task.lse + heads * unit.num_queries,
                                 task.delta + unit_index * unit.rows.num_rows, rows, memory);
        is_loaded = true;
      }
      const KeyBlock part = begun_at_word<Word>(seen, pass.blocks[i]);
      const std::int64_t skipped = part.begin - pass.blocks[i].begin;
      const std::int64_t at = i * size + skipped * padded_head_dim(unit.head_dim);
      differentiate<Word>(unit, part, from_key<Word>(pass.panels[i], skipped), memory,
                          {memory.sums.key + at, memory.sums.value + at}, grad + t * size);
    }
  }
}

// The gradients of a pass's keys.
inline void store_pass(const AttentionUnit& unit, const Pass& pass, const KeyGradients& sums,
                       const MutableHeadRows& grad_key, const MutableHeadRows& grad_value) {
  const float zeros[kMaxHeadDim] = {};
  for (std::int64_t i = 0; i < pass.count; ++i) {
    for (std::int64_t n = pass.whole[i].begin; n < pass.whole[i].end; ++n) {
      const bool is_read = n >= pass.blocks[i].begin && n < pass.blocks[i].end;
      const std::int64_t at = i * tile_floats(unit.head_dim) +
                              (n - pass.blocks[i].begin) * padded_head_dim(unit.head_dim);
      for (std::int64_t d = 0; is_read && d < unit.head_dim; ++d) {
        sums.key[at + d] *= unit.scale;
      }
      store_row(is_read ? sums.key + at : zeros, unit.head_dim, grad_key.data, grad_key.dtype,
                n * grad_key.stride);
      store_row(is_read ? sums.value + at : zeros, unit.head_dim, grad_value.data, grad_value.dtype,
                n * grad_value.stride);
    }
  }
}

inline void clear_sums(const AttentionUnit& unit, const KeyGradients& sums) {
  fill(sums.key, kBlocksPerPass * tile_floats(unit.head_dim), 0.0F);
  fill(sums.value, kBlocksPerPass * tile_floats(unit.head_dim), 0.0F);
}

template <class Word>
inline void backward(const BackwardTask& task, float* scratch) {
  const AttentionUnit& first = task.units[0];
  const RowLayout& layout = first.rows;
  BackwardMemory memory = backward_memory<Word>(first.head_dim, scratch);
  const std::int64_t num_sums =
      layout.units_per_key_head * layout.num_tiles * tile_floats(first.head_dim);
  fill(task.grad_query, num_sums, 0.0F);
  if (task.grad_prefix_query != task.grad_query) {
    fill(task.grad_prefix_query, num_sums, 0.0F);
  }
  std::int64_t block = task.first_block;
  while (block < task.end_block) {
    std::int64_t count = 0;
    for (std::int64_t u = 0; u < layout.units_per_key_head; ++u) {
      const Pass pass = load_pass<Word>(task.units[u], block, task.end_block, memory);
      const bool is_prefix = pass.blocks[0].is_prefix;
      if (u == 0 || is_prefix) {  // raw keys are shared by the units, prefix entries are not
        clear_sums(first, memory.sums);
      }
      run_pass<Word>(task, pass, u, memory);
      if (is_prefix) {
        store_pass(task.units[u], pass, memory.sums, task.grad_prefix_key[u],
                   task.grad_prefix_value[u]);
      } else if (u + 1 == layout.units_per_key_head) {
        store_pass(first, pass, memory.sums, task.grad_key, task.grad_value);
      }
      count = pass.count;
    }
    block += count;
  }
}

inline void reduce(const ReduceTask& task, float* memory) {
  const AttentionUnit& unit = task.unit;
  const std::int64_t size = tile_floats(unit.head_dim);
  float* total = memory;
  float* rows = memory + size;
  const VecF scale = set1(unit.scale);
  for (std::int64_t t = 0; t < unit.rows.num_tiles; ++t) {
    for (std::int64_t i = 0; i < size; i += kFloatLanes) {
      VecF sum = load(task.sums + t * size + i);
      for (std::int64_t c = 1; c < task.num_chunks; ++c) {
        sum += load(task.sums + c * task.chunk_stride + t * size + i);
      }
      store(total + i, sum * scale);
    }
    transpose(total, padded_head_dim(unit.head_dim), kTileRows, rows);
    const std::int64_t first_row = t * kTileRows;
    store_tile(rows, unit.rows, first_row, smaller(unit.rows.num_rows - first_row, kTileRows),
               unit.head_dim, task.grad);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
