#pragma once
// What cpu.cpp exports once per instruction set: the tasks of attention in float32 and bfloat16.

#include <cstddef>
#include <cstdint>

#include "kernels/attention/tile.h"
#include "kernels/common/tensor_view.h"

namespace paperlab::kernels {

// Rows of one head's keys or values: row n begins at data + n stride elements.
template <class Void>
struct BasicHeadRows {
  Void* data = nullptr;
  std::int64_t stride = 0;
  DType dtype = DType::kFloat32;
};
using HeadRows = BasicHeadRows<const void>;
using MutableHeadRows = BasicHeadRows<void>;

// The rows of a unit (tile.h) in a [B, H, T, D] tensor: query t of head m at
// data + m head_stride + t query_stride elements.
template <class Void>
struct BasicUnitRows {
  Void* data = nullptr;
  std::int64_t head_stride = 0;
  std::int64_t query_stride = 0;
  DType dtype = DType::kFloat32;
};
using UnitRows = BasicUnitRows<const void>;
using MutableUnitRows = BasicUnitRows<void>;

// One unit of one batch row.
struct AttentionUnit {
  UnitRows query;
  UnitRows prefix_query;  // the query's where there is no other
  HeadRows key;
  HeadRows value;
  HeadRows prefix_key;
  HeadRows prefix_value;
  RowLayout rows;
  std::int64_t num_queries = 0;
  std::int64_t num_keys = 0;
  std::int64_t num_prefix = 0;
  std::int64_t key_start = 0;  // positions
  std::int64_t key_end = 0;
  std::int64_t head_dim = 0;
  KeyRule rule;
  float scale = 1.0F;  // of the logits

  VisibleKeys seen_by(std::int64_t query_index) const {
    return rule.visible(rule.num_past + key_position(query_index, num_queries, num_keys), key_start,
                        key_end);
  }
};

struct ForwardTask {
  AttentionUnit unit;
  MutableUnitRows out;
  float* lse;  // of the unit's first head, heads num_queries apart
  std::int64_t first_tile;
  std::int64_t num_tiles;  // at most kMaxTilesPerTask
};

// grad_out . out - grad_lse for every row of a unit, in the order of rows.
struct DeltaTask {
  AttentionUnit unit;
  UnitRows grad_out;
  UnitRows out;
  const float* grad_lse;  // of the unit's first head; null: zeros
  float* delta;
};

// A chunk of the key blocks of one key head, for all units that share it.
struct BackwardTask {
  const AttentionUnit* units;  // [units_per_key_head]
  const UnitRows* grad_out;    // of each unit
  const float* lse;            // of the first unit's first head
  const float* delta;          // of the first unit, units num_rows apart
  std::int64_t first_block;    // block_at's numbers
  std::int64_t end_block;
  // [units][tiles][padded head_dim][kTileRows], set to zero by the task; the prefix query's own or
  // the same.
  float* grad_query;
  float* grad_prefix_query;
  MutableHeadRows grad_key;
  MutableHeadRows grad_value;
  const MutableHeadRows* grad_prefix_key;  // of each unit
  const MutableHeadRows* grad_prefix_value;
};

// Adds the chunks' gradients of a unit's query rows, in order, times the scale.
struct ReduceTask {
  AttentionUnit unit;
  const float* sums;  // of the unit in the first chunk
  std::int64_t chunk_stride;
  std::int64_t num_chunks;
  MutableUnitRows grad;
};

// A run of keys of one stream for the single query of all heads of a unit.
struct DecodeTask {
  AttentionUnit unit;
  bool is_prefix;
  std::int64_t begin;
  std::int64_t end;
  float* partial;  // [heads][2 + padded head_dim]: largest logit, sum, weighted values
  std::int64_t head_stride;
};

struct MergeTask {
  const float* partials;  // [runs][2 + padded head_dim] of one head
  std::int64_t num_runs;
  std::int64_t run_stride;
  std::int64_t head_dim;
  void* out;
  DType dtype;
  float* lse;
};

// Rows in scratch memory have a width that is a multiple of every instruction set's lanes.
constexpr std::int64_t padded_head_dim(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

struct AttentionCpu {
  std::size_t (*forward_scratch)(std::int64_t head_dim);  // floats
  std::size_t (*backward_scratch)(std::int64_t head_dim);
  std::size_t (*decode_scratch)(std::int64_t head_dim, std::int64_t num_heads);
  void (*forward)(const ForwardTask& task, float* scratch);
  void (*delta)(const DeltaTask& task, float* scratch);
  void (*backward)(const BackwardTask& task, float* scratch);
  void (*reduce)(const ReduceTask& task, float* scratch);
  void (*decode)(const DecodeTask& task, float* scratch);
  void (*merge)(const MergeTask& task);
};

namespace generic {
AttentionCpu attention_cpu();
}
namespace avx2 {
AttentionCpu attention_cpu();
}
namespace avx512 {
AttentionCpu attention_cpu();
AttentionCpu attention_cpu_bfloat16();  // needs AVX-512 BF16; bfloat16 only
}  // namespace avx512

}  // namespace paperlab::kernels
