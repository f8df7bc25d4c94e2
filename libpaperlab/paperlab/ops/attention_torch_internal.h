#pragma once
/// \file
/// Attention from LibTorch's operations, for every device and dtype (float16 too), without waiting
/// for the device: chunks of query rows against the keys that they may see. Sums are float32
/// (float64 for float64); of half types weights and the logits' gradients are rounded to that type
/// before they are multiplied. Memory beside the results is bounded but for what is linear in T
/// and S. With T = 1 on the CPU the same bits for any B; on a GPU that is left to its libraries.
/// There LibTorch's flash attention takes dense and full attention of half types; gradients come
/// from chunks all the same, so that they have the same bits from run to run.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/attention/key_rule.h"
#include "paperlab/core/export.h"
#include "paperlab/ops/attention_kernels_internal.h"

namespace paperlab::ops {

/// Of arguments that were checked. A value in key_start or key_end outside 0..num_past + S is a
/// c10::ValueError on the CPU; on a GPU it counts as the nearest inside, as in our kernel.
AttentionResults attention_by_torch(const AttentionArguments& arguments);
AttentionGradients attention_backward_by_torch(const AttentionArguments& arguments,
                                               const AttentionBackwardArguments& backward);

/// Whether LibTorch's flash attention computes `arguments` with these sums and rounding: on a GPU
/// of sm_80 or newer, half types, D a multiple of 8, every row seeing all keys or those up to its
/// own, no prefix, no key ranges, scale > 0.
bool takes_flash(const AttentionArguments& arguments);

/// Of arguments that it takes.
AttentionResults attention_by_flash(const AttentionArguments& arguments);

/// KeyRule::visible of many rows; int64 [B or 1, rows].
struct VisibleRows {
  at::Tensor prefix_end;
  at::Tensor begin;
  at::Tensor end;
};

/// \param positions  of the rows, int64 [1, rows].
/// \param start      the first key's position, int64 [B or 1, 1]; `end` likewise.
PAPERLAB_API VisibleRows visible_rows(const kernels::KeyRule& rule, const at::Tensor& positions,
                                      const at::Tensor& start, const at::Tensor& end);

/// Query rows with the keys that any of them may see: raw keys and prefix entries.
struct RowChunk {
  std::int64_t first_row;
  std::int64_t num_rows;
  std::int64_t first_key;
  std::int64_t num_keys;
  std::int64_t num_entries;
};

/// How rows are cut; numbers of a problem, of which nothing depends on values.
struct ChunkPlan {
  kernels::KeyRule rule;
  std::int64_t num_heads;  ///< of all batch rows
  std::int64_t num_queries;
  std::int64_t num_keys;
  std::int64_t num_entries;
  bool has_key_end;

  /// The chunk that begins with that row: its logits are few enough, or those of one row.
  PAPERLAB_API RowChunk chunk_at(std::int64_t first_row) const;

 private:
  RowChunk chunk_of(std::int64_t first_row, std::int64_t num_rows) const;
};

/// Of arguments that were checked.
ChunkPlan chunk_plan(const AttentionArguments& arguments);

}  // namespace paperlab::ops
