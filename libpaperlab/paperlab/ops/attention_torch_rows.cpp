// Which keys rows see, as numbers of a chunk and as tensors.

#include <ATen/TensorOperators.h>
#include <ATen/ops/floor_divide.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "paperlab/ops/attention_torch_internal.h"

namespace paperlab::ops {
namespace {

using kernels::KeyRule;
using kernels::KeyRuleKind;

// Logits of a chunk: 64 MiB in float32.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 24;

// KeyRule's core_entries: `behind` keys lie behind the window, of `length` in all, kept ones aside.
VisibleRows core_rows(const KeyRule& rule, const at::Tensor& behind, const at::Tensor& length,
                      const at::Tensor& end) {
  const at::Tensor least = at::minimum(behind, length);
  const at::Tensor entries = at::floor_divide(least, rule.group);
  const at::Tensor sees = least >= rule.group;
  VisibleRows rows = {at::where(sees, entries + rule.kept, 0),
                      at::where(sees, entries * rule.group + (rule.kept - rule.overlap), 0), end};
  if (rule.truncated) {
    const at::Tensor sees_first =
        sees.logical_not() & (behind > 0) & (length >= rule.window + rule.group);
    rows.prefix_end = at::where(sees_first, rule.kept + 1, rows.prefix_end);
    rows.begin = at::where(sees_first, rule.kept, rows.begin);
  }
  return rows;
}

// KeyRule::at: positions and `length` keys that start at position 0.
VisibleRows rows_at(const KeyRule& rule, const at::Tensor& p, const at::Tensor& length) {
  const at::Tensor end = p + 1;
  const at::Tensor left = (end - rule.window).clamp_min(0);
  const at::Tensor none = at::zeros_like(end);
  switch (rule.kind) {
    case KeyRuleKind::kWindow:
      return {none, left, end};
    case KeyRuleKind::kCoreContext:
      return core_rows(rule, left - rule.kept, length - rule.kept, end);
    case KeyRuleKind::kSinks:
      return {at::minimum(left, length.clamp_max(rule.num_sinks)), left, end};
    case KeyRuleKind::kFull:
    case KeyRuleKind::kDense:
      break;
  }
  return {none, none, end};
}

// The position of row t, if the first key stands at num_past.
std::int64_t position(const ChunkPlan& plan, std::int64_t t) {
  return plan.rule.num_past + kernels::key_position(t, plan.num_queries, plan.num_keys);
}

// No row from position p on sees a key before this position, whatever the key ranges are. A row
// with core entries sees less than a group of keys, those that are kept and `overlap` more before
// its window; one past the end of the keys may see any.
std::int64_t least_position(const ChunkPlan& plan, std::int64_t p) {
  const KeyRule& rule = plan.rule;
  switch (rule.kind) {
    case KeyRuleKind::kWindow:
    case KeyRuleKind::kSinks:
      return p + 1 - rule.window;
    case KeyRuleKind::kCoreContext:
      return plan.has_key_end ? 0 : p + 1 - rule.window - rule.group - rule.kept - rule.overlap;
    case KeyRuleKind::kFull:
    case KeyRuleKind::kDense:
      break;
  }
  return 0;
}

// Nor an entry of the prefix from this on, if p is its position.
std::int64_t most_entries(const KeyRule& rule, std::int64_t p) {
  const std::int64_t left = std::max<std::int64_t>(p + 1 - rule.window, 0);
  return rule.kind != KeyRuleKind::kCoreContext
             ? left
             : rule.kept + std::max<std::int64_t>(left - rule.kept, 0) / rule.group + 1;
}

}  // namespace

VisibleRows visible_rows(const KeyRule& rule, const at::Tensor& positions, const at::Tensor& start,
                         const at::Tensor& end) {
  const bool is_full = rule.kind == KeyRuleKind::kFull;
  const at::Tensor p = positions - start;
  const at::Tensor length = end - start;
  VisibleRows rows = rows_at(rule, p, length);
  const at::Tensor last = is_full ? end : at::minimum(rows.end + start, end);
  const at::Tensor is_blind = is_full ? length <= 0 : (length <= 0) | (p < 0);
  rows.end = at::where(is_blind, 0, (last - rule.num_past).clamp_min(0));
  rows.begin = at::minimum((rows.begin + start - rule.num_past).clamp_min(0), rows.end);
  rows.prefix_end = at::where(is_blind, 0, rows.prefix_end);
  return rows;
}

RowChunk ChunkPlan::chunk_of(std::int64_t first_row, std::int64_t num_rows) const {
  const std::int64_t first = position(*this, first_row);
  const std::int64_t last = position(*this, first_row + num_rows - 1);
  const bool is_causal = rule.kind != KeyRuleKind::kFull;
  const auto key_of = [this](std::int64_t p) {
    return std::clamp<std::int64_t>(p - rule.num_past, 0, num_keys);
  };
  const std::int64_t begin = key_of(least_position(*this, first));
  const std::int64_t end = is_causal ? key_of(last + 1) : num_keys;
  return {first_row, num_rows, std::min(begin, end), std::max<std::int64_t>(end - begin, 0),
          num_entries == 0 ? 0 : std::min(num_entries, most_entries(rule, last))};
}

RowChunk ChunkPlan::chunk_at(std::int64_t first_row) const {
  RowChunk chunk = chunk_of(first_row, num_queries - first_row);
  while (chunk.num_rows > 1 &&
         num_heads * chunk.num_rows * (chunk.num_keys + chunk.num_entries) > kChunkElements) {
    chunk = chunk_of(first_row, (chunk.num_rows + 1) / 2);
  }
  return chunk;
}

ChunkPlan chunk_plan(const AttentionArguments& in) {
  const std::int64_t num_entries = in.prefix_key.defined() ? in.prefix_key.size(2) : 0;
  ChunkPlan plan = {rule_of(in),      in.query.size(0) * in.query.size(1),
                    in.query.size(2), in.key.size(2),
                    num_entries,      in.key_end.defined()};
  // What no sequence reaches is all the same, and sums of such numbers would overflow.
  KeyRule& rule = plan.rule;
  const std::int64_t limit = rule.num_past + plan.num_keys + plan.num_queries + 1;
  for (std::int64_t* number : {&rule.window, &rule.group, &rule.num_sinks, &rule.kept}) {
    *number = std::min(*number, limit);
  }
  return plan;
}

}  // namespace paperlab::ops
