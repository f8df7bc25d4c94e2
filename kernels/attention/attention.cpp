// Checks, the choice of path, and the tasks of the fast one.
#include "kernels/attention/attention.h"

#include <limits>
#include <string>

#include "kernels/attention/problem.h"
#include "kernels/common/cpu_dtype.h"
#include "kernels/common/view_checks.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

// Masks compare 32-bit key numbers.
constexpr std::int64_t kMaxKeys = std::numeric_limits<std::int32_t>::max() - 2 * kTileKeys;

constexpr char kFunction[] = "attention";

void check_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    refuse<ValueError>(kFunction, std::string(name) + " must be at least " + std::to_string(least),
                       std::to_string(value));
  }
}

void check_key_ranges(const AttentionInputs& in) {
  const std::int64_t num_keys = in.rule.num_past + in.key.size[2];
  for (const std::int64_t* ends : {in.key_start, in.key_end}) {
    for (std::int64_t b = 0; ends != nullptr && b < in.query.size[0]; ++b) {
      if (ends[b] < 0 || ends[b] > num_keys) {
        refuse<ValueError>(kFunction,
                           std::string(ends == in.key_start ? "key_start" : "key_end") +
                               " must be in 0.." + std::to_string(num_keys),
                           std::to_string(ends[b]));
      }
    }
  }
}

void check_prefix(const AttentionInputs& in) {
  const auto& [batch, heads, queries, width] = in.query.size;
  const std::int64_t num_keys = in.rule.num_past + in.key.size[2];
  const std::int64_t needed =
      num_keys == 0 ? 0 : in.rule.visible(num_keys - 1, 0, num_keys).prefix_end;
  if (in.prefix_key.size[2] < needed) {
    refuse<ShapeError>(kFunction,
                       "prefix_key must have at least " + std::to_string(needed) + " entries",
                       std::to_string(in.prefix_key.size[2]));
  }
  if (in.prefix_key.data == nullptr) {
    return;
  }
  const std::int64_t prefix_heads = in.prefix_key.size[1];
  if (prefix_heads != heads && prefix_heads != in.key.size[1]) {
    refuse<ShapeError>(kFunction, "prefix_key must have as many heads as query or key",
                       sizes_text(in.prefix_key.size));
  }
  const ViewSizes prefix = {{batch, prefix_heads, in.prefix_key.size[2], width}};
  const ViewCheck check_view{kFunction, "query", in.query.dtype};
  check_view(in.prefix_key, "prefix_key", prefix);
  check_view(in.prefix_value, "prefix_value", prefix);
  if (in.prefix_query.data != nullptr) {
    check_view(in.prefix_query, "prefix_query", {{batch, heads, queries, width}});
  }
}

float* lse_of(const AttentionOutputs& out, const Geometry& g, std::int64_t b, std::int64_t head) {
  return static_cast<float*>(out.lse) + (b * g.num_heads + head) * g.num_queries;
}

void forward_tiles(const AttentionInputs& in, const AttentionOutputs& out, const Geometry& g,
                   const Executor& executor) {
  const AttentionCpu kernel = attention_tasks(in.query);
  const std::int64_t num_units = g.batch * g.rows.num_units;
  const std::int64_t tiles = tiles_per_task(num_units, g.rows.num_tiles);
  const std::int64_t per_unit = ceil_div(g.rows.num_tiles, tiles);
  WorkerScratch scratch(kernel.forward_scratch(g.head_dim), executor);
  parallel_for(executor, num_units * per_unit, [&](std::int64_t number, int worker) {
    // The last tiles, which see most keys, first.
    const std::int64_t first = (per_unit - 1 - number / num_units) * tiles;
    const std::int64_t b = number % num_units / g.rows.num_units;
    const std::int64_t index = number % g.rows.num_units;
    const std::int64_t head = index * g.rows.heads_per_unit;
    kernel.forward({unit_at(in, g, b, index), unit_rows(out.out, b, head), lse_of(out, g, b, head),
                    first, smaller(tiles, g.rows.num_tiles - first)},
                   scratch.of(worker));
  });
}

// Runs of the two streams, whether or not a row sees all of them.
struct DecodeRuns {
  explicit DecodeRuns(const Geometry& g)
      : prefix(num_decode_runs(g.num_prefix, g.head_dim)),
        count(prefix + num_decode_runs(g.num_keys, g.head_dim)) {}

  // Its visible keys; none where begin >= end.
  KeyBlock at(std::int64_t number, const Geometry& g, const AttentionUnit& unit) const {
    const VisibleKeys seen = unit.seen_by(0);
    const bool is_prefix = number < prefix;
    const std::int64_t run = decode_run(is_prefix ? g.num_prefix : g.num_keys, g.head_dim);
    const std::int64_t begin = (is_prefix ? number : number - prefix) * run;
    return {is_prefix, larger(begin, is_prefix ? 0 : seen.begin),
            smaller(begin + run, is_prefix ? seen.prefix_end : seen.end)};
  }

  std::int64_t prefix;
  std::int64_t count;
};

void forward_decode(const AttentionInputs& in, const AttentionOutputs& out, const Geometry& g,
                    const Executor& executor) {
  const AttentionCpu kernel = attention_tasks(in.query);
  const DecodeRuns runs(g);
  const std::int64_t run_stride = padded_head_dim(g.head_dim) + 2;
  const std::int64_t head_stride = runs.count * run_stride;
  Floats partials(static_cast<std::size_t>(g.batch * g.num_heads * head_stride));
  WorkerScratch scratch(kernel.decode_scratch(g.head_dim, g.rows.heads_per_unit), executor);
  const std::int64_t num_units = g.batch * g.rows.num_units;
  parallel_for(executor, num_units * runs.count, [&](std::int64_t number, int worker) {
    const std::int64_t run = number % runs.count;
    const std::int64_t index = number / runs.count;
    const AttentionUnit unit = unit_at(in, g, index / g.rows.num_units, index % g.rows.num_units);
    const KeyBlock keys = runs.at(run, g, unit);
    kernel.decode({unit, keys.is_prefix, keys.begin, keys.end,
                   partials.data() + index * g.rows.heads_per_unit * head_stride + run * run_stride,
                   head_stride},
                  scratch.of(worker));
  });
  for (std::int64_t head = 0; head < g.batch * g.num_heads; ++head) {
    const std::int64_t b = head / g.num_heads;
    kernel.merge({partials.data() + head * head_stride, runs.count, run_stride, g.head_dim,
                  head_data(out.out, b, head % g.num_heads), out.out.dtype,
                  lse_of(out, g, 0, head)});
  }
}

}  // namespace

void check_attention(const AttentionInputs& in) {
  const auto& [batch, heads, queries, width] = in.query.size;
  if (width < 1 || width > kMaxHeadDim) {
    refuse<ShapeError>(kFunction, "head_dim must be in 1.." + std::to_string(kMaxHeadDim),
                       std::to_string(width));
  }
  const ViewCheck check_view{kFunction, "query", in.query.dtype};
  check_view(in.query, "query", {{batch, heads, queries, width}});
  const std::int64_t key_heads = in.key.size[1];
  check_head_groups(kFunction, heads, key_heads);
  const ViewSizes key = {{batch, key_heads, in.key.size[2], width}};
  check_view(in.key, "key", key);
  check_view(in.value, "value", key);
  if (larger(in.key.size[2], in.prefix_key.size[2]) > kMaxKeys) {
    refuse<ShapeError>(kFunction, "key must have at most " + std::to_string(kMaxKeys) + " rows",
                       sizes_text(in.key.size));
  }
  check_least("window", in.rule.window, in.rule.kind == KeyRuleKind::kCoreContext ? 0 : 1);
  check_least("group", in.rule.group, 1);
  check_least("num_sinks", in.rule.num_sinks, 0);
  check_least("kept", in.rule.kept, 0);
  check_least("num_past", in.rule.num_past, 0);
  if (in.rule.overlap < 0 || in.rule.overlap > 1) {
    refuse<ValueError>(kFunction, "overlap must be 0 or 1", std::to_string(in.rule.overlap));
  }
  check_prefix(in);
}

void attention(const AttentionInputs& inputs, const AttentionOutputs& outputs,
               const Executor& executor) {
  check_attention(inputs);
  check_key_ranges(inputs);
  require_cpu_dtype(inputs.query.dtype, "attention");
  const Geometry geometry(inputs);
  if (inputs.query.dtype == DType::kFloat64) {
    attention_reference(inputs, outputs);
  } else if (geometry.is_empty()) {
    return;
  } else if (geometry.num_queries == 1) {
    forward_decode(inputs, outputs, geometry, executor);
  } else {
    forward_tiles(inputs, outputs, geometry, executor);
  }
}

void attention_backward(const AttentionInputs& inputs, const AttentionBackwardInputs& forward,
                        const AttentionGradients& gradients, const Executor& executor) {
  check_attention(inputs);
  check_key_ranges(inputs);
  require_cpu_dtype(inputs.query.dtype, "attention_backward");
  if (inputs.query.dtype == DType::kFloat64) {
    attention_backward_reference(inputs, forward, gradients);
  } else {
    backward_tasks(inputs, forward, gradients, executor);
  }
}

}  // namespace paperlab::kernels
