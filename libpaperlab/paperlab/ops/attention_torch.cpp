#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "paperlab/ops/attention_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/torch_products_internal.h"

namespace paperlab::ops {
namespace {

using kernels::KeyRuleKind;

constexpr double kLowest = -std::numeric_limits<double>::infinity();

void check_key_range(const AttentionArguments& in, const char* name, const at::Tensor& bound) {
  if (!bound.defined() || !bound.is_cpu()) {  // a GPU is not waited for
    return;
  }
  const std::int64_t limit = in.num_past.expect_int() + in.key.size(2);
  const at::Tensor bad = bound.masked_select((bound < 0) | (bound > limit));
  TORCH_CHECK_VALUE(bad.numel() == 0, in.function, ": ", name, " must be in 0..", limit, ", got ",
                    bad[0].item<std::int64_t>());
}

void check_key_ranges(const AttentionArguments& in) {
  check_key_range(in, "key_start", in.key_start);
  check_key_range(in, "key_end", in.key_end);
}

// Products of heads that share keys: the H / G query heads of a key head are rows of one matrix.
//
// [B, G, H/G rows, columns] of [B, H, rows, columns].
at::Tensor grouped(const at::Tensor& x, const at::Tensor& keys) {
  const std::int64_t num_groups = keys.size(1);
  return x.reshape({x.size(0), num_groups, x.size(1) / num_groups * x.size(2), x.size(3)});
}

// x y, [B, G, rows, columns], with sums in that dtype.
at::Tensor products(const at::Tensor& x, const at::Tensor& y, at::ScalarType sums) {
  if (x.scalar_type() == sums) {
    return x.matmul(y);
  }
  return product(x.flatten(0, 1), y.flatten(0, 1), sums).unflatten(0, {x.size(0), x.size(1)});
}

// x y_h^T, [B, H, rows, N], of x [B, H, rows, D] and y [B, G, N, D].
at::Tensor with_keys(const at::Tensor& x, const at::Tensor& y, at::ScalarType sums) {
  return products(grouped(x, y), y.transpose(2, 3), sums)
      .reshape({x.size(0), x.size(1), x.size(2), y.size(2)});
}

// x y_h, [B, H, rows, D], of x [B, H, rows, N].
at::Tensor over_keys(const at::Tensor& x, const at::Tensor& y, at::ScalarType sums) {
  return products(grouped(x, y), y, sums).reshape({x.size(0), x.size(1), x.size(2), y.size(3)});
}

// The sum over rows and the heads of a group of x^T rows, like y: [B, G, N, D].
at::Tensor over_rows(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& y,
                     at::ScalarType sums) {
  return products(grouped(x, y).transpose(2, 3), grouped(rows, y), sums);
}

// Queries, keys and values of one of the two key streams as factors of products; or their
// gradients, in the dtype of sums.
struct Stream {
  at::Tensor query;  // [B, H, T, D]
  at::Tensor key;    // [B, G, N, D]
  at::Tensor value;
};

// A chunk of rows: the streams cut to it and which keys are hidden from a row, raw keys first.
struct Chunk {
  RowChunk range;
  std::vector<Stream> streams;
  at::Tensor hidden;    // [B or 1, 1, rows, keys + entries]
  at::Tensor is_blind;  // [B or 1, 1, rows, 1]: rows without keys, which may hold anything

  std::int64_t first_of(std::size_t stream) const { return stream == 0 ? range.first_key : 0; }
  std::int64_t size_of(std::size_t stream) const {
    return stream == 0 ? range.num_keys : range.num_entries;
  }

  // Of [B, H, T, ..].
  at::Tensor rows(const at::Tensor& x) const {
    return x.narrow(2, range.first_row, range.num_rows);
  }

  // The columns of that stream.
  at::Tensor columns(const at::Tensor& x, std::size_t stream) const {
    return x.narrow(-1, stream == 0 ? 0 : range.num_keys, size_of(stream));
  }

  template <class F>
  at::Tensor of_all_streams(F part) const {
    std::vector<at::Tensor> parts;
    for (const Stream& stream : streams) {
      parts.push_back(part(stream));
    }
    return parts.size() == 1 ? parts[0] : at::cat(parts, -1);
  }
};

class Problem {
 public:
  explicit Problem(const AttentionArguments& in)
      : plan_(chunk_plan(in)),
        scale_(scale_of(in)),
        dtype_(lse_dtype(in.query)),
        input_dtype_(in.query.scalar_type()),
        factor_dtype_(factor_dtype(in.query, dtype_)),
        has_one_row_(in.query.is_cpu() && in.query.size(2) == 1) {
    const at::TensorOptions integers = in.query.options().dtype(at::kLong);
    const std::int64_t limit = plan_.rule.num_past + plan_.num_keys;
    const auto bound = [&](const at::Tensor& x, std::int64_t otherwise) {
      return x.defined() ? x.clamp(0, limit).unsqueeze(1) : at::full({1, 1}, otherwise, integers);
    };
    start_ = bound(in.key_start, 0);
    end_ = bound(in.key_end, limit);
    may_leave_out_ = in.key_start.defined() || in.key_end.defined() ||
                     plan_.rule.kind == KeyRuleKind::kCoreContext;
    const auto lain = [this](const at::Tensor& x) { return x.to(factor_dtype_); };
    streams_.push_back({lain(in.query), lain(in.key), lain(in.value)});
    if (in.prefix_key.defined()) {
      streams_.push_back({in.prefix_query.defined() ? lain(in.prefix_query) : streams_[0].query,
                          lain(in.prefix_key), lain(in.prefix_value)});
    }
  }

  // Calls body(chunk) in the order of the rows.
  template <class F>
  void for_each_chunk(F body) const {
    const bool is_empty = streams_[0].query.numel() == 0;
    for (std::int64_t row = 0; row < plan_.num_queries && !is_empty;) {
      const Chunk chunk = chunk_at(row);
      body(chunk);
      row += chunk.range.num_rows;
    }
  }

  // scale q k, -inf where a key is hidden: [B, H, rows, keys + entries].
  at::Tensor logits(const Chunk& chunk) const {
    return chunk
        .of_all_streams([this](const Stream& s) { return with_keys(s.query, s.key, dtype_); })
        .mul_(scale_)
        .masked_fill_(chunk.hidden, kLowest);
  }

  // exp(logit - lse), 0 for rows without keys. Hidden keys have none of a row that is NaN, either.
  static at::Tensor weights(const at::Tensor& logits, const at::Tensor& lse, const Chunk& chunk) {
    const at::Tensor finite = lse.masked_fill(lse == kLowest, 0.0).unsqueeze(-1);
    return (logits - finite).exp_().masked_fill_(chunk.hidden, 0.0);
  }

  // Sums as factors of further products: rounded to the inputs' dtype, whoever multiplies.
  at::Tensor factor(const at::Tensor& x) const { return x.to(input_dtype_).to(factor_dtype_); }

  at::ScalarType dtype() const { return dtype_; }
  double scale() const { return scale_; }
  const std::vector<Stream>& streams() const { return streams_; }

 private:
  Chunk chunk_at(std::int64_t row) const;

  ChunkPlan plan_;
  double scale_;
  at::ScalarType dtype_;  // of sums
  at::ScalarType input_dtype_;
  at::ScalarType factor_dtype_;  // in which factors lie: half types stay so on a GPU
  bool has_one_row_;             // of a query, on the CPU
  at::Tensor start_;             // [B or 1, 1]
  at::Tensor end_;
  bool may_leave_out_;  // keys of a chunk's range that no row of it sees
  std::vector<Stream> streams_;
};

// Whether a row sees a key, bool [B or 1, rows, keys + entries].
at::Tensor shown_keys(const RowChunk& range, const VisibleRows& rows) {
  const at::TensorOptions integers = rows.end.options();
  const at::Tensor n = at::arange(range.first_key, range.first_key + range.num_keys, integers);
  const at::Tensor keys = (n >= rows.begin.unsqueeze(-1)) & (n < rows.end.unsqueeze(-1));
  if (range.num_entries == 0) {
    return keys;
  }
  return at::cat({keys, at::arange(range.num_entries, integers) < rows.prefix_end.unsqueeze(-1)},
                 -1);
}

Chunk Problem::chunk_at(std::int64_t row) const {
  Chunk chunk{plan_.chunk_at(row), {}, {}, {}};
  const RowChunk& range = chunk.range;
  const std::int64_t first =
      plan_.rule.num_past + kernels::key_position(row, plan_.num_queries, plan_.num_keys);
  const at::Tensor positions = at::arange(first, first + range.num_rows, start_.options());
  const at::Tensor shown =
      shown_keys(range, visible_rows(plan_.rule, positions.unsqueeze(0), start_, end_));
  chunk.hidden = shown.logical_not().unsqueeze(1);
  chunk.is_blind = shown.any(-1).logical_not().unsqueeze(1).unsqueeze(-1);
  const at::Tensor is_unseen = shown.any(1).logical_not().unsqueeze(1);  // [B or 1, 1, keys]
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    // The bits of a product depend on where in memory its factors begin.
    const auto own = [&](const at::Tensor& x) {
      return has_one_row_ ? x.clone(at::MemoryFormat::Contiguous) : x;
    };
    const auto cut = [&](const at::Tensor& x) {
      const at::Tensor part = x.narrow(2, chunk.first_of(i), chunk.size_of(i));
      return may_leave_out_ ? part.masked_fill(chunk.columns(is_unseen, i).unsqueeze(-1), 0.0)
                            : own(part);
    };
    chunk.streams.push_back(
        {own(chunk.rows(streams_[i].query)), cut(streams_[i].key), cut(streams_[i].value)});
  }
  return chunk;
}

// Sums of gradients in the dtype of sums.
std::vector<Stream> zero_gradients(const Problem& problem, bool has_prefix_query) {
  const auto zeros = [&](const at::Tensor& x) {
    return at::zeros(x.sizes(), x.options().dtype(problem.dtype()));
  };
  std::vector<Stream> gradients;
  for (const Stream& stream : problem.streams()) {
    const bool shares_query = !gradients.empty() && !has_prefix_query;
    gradients.push_back({shares_query ? gradients[0].query : zeros(stream.query), zeros(stream.key),
                         zeros(stream.value)});
  }
  return gradients;
}

// ds_n = p_n (g . v_n - g . o + h), dq = scale sum ds_n k_n, dk_n = scale ds_n q, dv_n = p_n g.
void add_gradients(const Problem& problem, const Chunk& chunk,
                   const AttentionBackwardArguments& backward,
                   const std::vector<Stream>& gradients) {
  const at::ScalarType sums = problem.dtype();
  const at::Tensor p = Problem::weights(problem.logits(chunk), chunk.rows(backward.lse), chunk);
  const at::Tensor grad_out =
      chunk.rows(backward.grad_out).to(sums).masked_fill(chunk.is_blind, 0.0);
  at::Tensor delta = (grad_out * chunk.rows(backward.out)).sum(-1);
  if (backward.grad_lse.defined()) {
    delta = delta - chunk.rows(backward.grad_lse);
  }
  const at::Tensor g = problem.factor(grad_out);
  const at::Tensor ds = problem.factor(
      chunk.of_all_streams([&](const Stream& s) { return with_keys(g, s.value, sums); })
          .sub_(delta.unsqueeze(-1))
          .mul_(p)
          .mul_(problem.scale())
          .masked_fill_(chunk.hidden, 0.0));
  const at::Tensor weights = problem.factor(p);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto& [query, key, value] = chunk.streams[i];
    const at::Tensor of_stream = chunk.columns(ds, i);
    const at::Tensor sighted = query.masked_fill(chunk.is_blind, 0.0);
    const auto keys_of = [&](const at::Tensor& x) {
      return x.narrow(2, chunk.first_of(i), chunk.size_of(i));
    };
    chunk.rows(gradients[i].query).add_(over_keys(of_stream, key, sums));
    keys_of(gradients[i].key).add_(over_rows(of_stream, sighted, key, sums));
    keys_of(gradients[i].value).add_(over_rows(chunk.columns(weights, i), g, value, sums));
  }
}

// Writes out and lse of the problem's rows.
void attend(const AttentionArguments& in, const AttentionResults& results) {
  const Problem problem(in);
  problem.for_each_chunk([&](const Chunk& chunk) {
    const at::Tensor logits = problem.logits(chunk);
    const at::Tensor of_rows = at::logsumexp(logits, {-1});
    const at::Tensor p = problem.factor(Problem::weights(logits, of_rows, chunk));
    const auto part = [&](std::size_t i) {
      return over_keys(chunk.columns(p, i), chunk.streams[i].value, problem.dtype());
    };
    const at::Tensor sum = chunk.streams.size() > 1 ? part(0) + part(1) : part(0);
    chunk.rows(std::get<0>(results)).copy_(sum);
    chunk.rows(std::get<1>(results)).copy_(of_rows);
  });
}

AttentionGradients gradients_of(const AttentionArguments& in,
                                const AttentionBackwardArguments& backward) {
  const Problem problem(in);
  const std::vector<Stream> sums = zero_gradients(problem, in.prefix_query.defined());
  problem.for_each_chunk(
      [&](const Chunk& chunk) { add_gradients(problem, chunk, backward, sums); });
  const auto rounded = [&](const at::Tensor& input, const at::Tensor& sum) {
    return input.defined() ? sum.to(in.query.scalar_type()) : at::empty({0}, in.query.options());
  };
  const Stream& prefix = sums.back();
  return {rounded(in.query, sums[0].query),   rounded(in.key, sums[0].key),
          rounded(in.value, sums[0].value),   rounded(in.prefix_query, prefix.query),
          rounded(in.prefix_key, prefix.key), rounded(in.prefix_value, prefix.value)};
}

// Whether each row of the batch is a problem of its own, so that the bits of a single query do not
// depend on the others.
bool is_row_by_row(const AttentionArguments& in) {
  return in.query.is_cpu() && in.query.size(2) == 1;
}

at::Tensor row_of(const at::Tensor& x, std::int64_t b) {
  return x.defined() ? x.narrow(0, b, 1) : x;
}

AttentionArguments row_of(const AttentionArguments& in, std::int64_t b) {
  AttentionArguments row = in;
  for (at::Tensor* x : {&row.query, &row.key, &row.value, &row.key_start, &row.key_end,
                        &row.prefix_query, &row.prefix_key, &row.prefix_value}) {
    *x = row_of(*x, b);
  }
  return row;
}

AttentionBackwardArguments row_of(const AttentionBackwardArguments& in, std::int64_t b) {
  return {row_of(in.grad_out, b), row_of(in.grad_lse, b), row_of(in.out, b), row_of(in.lse, b)};
}

std::array<at::Tensor, 6> all_of(const AttentionGradients& gradients) {
  return std::apply([](const auto&... x) { return std::array{x...}; }, gradients);
}

}  // namespace

AttentionResults attention_by_torch(const AttentionArguments& in) {
  const autocast::Off guard;
  check_key_ranges(in);
  if (takes_flash(in)) {
    return attention_by_flash(in);
  }
  AttentionResults results = new_results(in);
  if (!is_row_by_row(in)) {
    attend(in, results);
    return results;
  }
  const auto& [out, lse] = results;
  for (std::int64_t b = 0; b < in.query.size(0); ++b) {
    attend(row_of(in, b), {row_of(out, b), row_of(lse, b)});
  }
  return results;
}

AttentionGradients attention_backward_by_torch(const AttentionArguments& in,
                                               const AttentionBackwardArguments& backward) {
  const autocast::Off guard;
  check_key_ranges(in);
  if (!is_row_by_row(in)) {
    return gradients_of(in, backward);
  }
  AttentionGradients gradients = new_gradients(in);
  const std::array<at::Tensor, 6> all = all_of(gradients);
  for (std::int64_t b = 0; b < in.query.size(0); ++b) {
    const std::array<at::Tensor, 6> row = all_of(gradients_of(row_of(in, b), row_of(backward, b)));
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (row[i].dim() == 4) {  // those of tensors that are not there are [0]
        row_of(all[i], b).copy_(row[i]);
      }
    }
  }
  return gradients;
}

}  // namespace paperlab::ops
