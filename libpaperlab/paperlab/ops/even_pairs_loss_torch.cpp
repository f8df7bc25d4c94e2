// A string of L tokens is a row part (the first half of its free tokens) and a column part (the
// others and its last token), and its sums Z and N are a number of its row plus one of its column:
// all strings of (L, last token) are an outer sum. exp(logit) is taken relative to the largest of a
// string, so that none overflows and not all vanish.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/even_pairs_loss_torch_internal.h"

namespace paperlab::ops::forms {
namespace {

constexpr std::int64_t kChunkElements = std::int64_t{1} << 22;  // strings at a time: 32 MiB

// Row r holds the bits of r, [2^count, count] bool.
at::Tensor all_tokens(std::int64_t count, const at::TensorOptions& options) {
  const at::TensorOptions integers = options.dtype(at::kLong);
  const at::Tensor numbers = at::arange(std::int64_t{1} << count, integers).unsqueeze(1);
  return numbers.bitwise_right_shift(at::arange(count, integers)).bitwise_and(1).to(at::kBool);
}

// The tokens of positions first_position.. of half a string, all choices of them, and what each
// adds to Z and N, relative to e^largest.
struct Part {
  // logits and u: [2 Lmax], entry 2 l + token.
  Part(const at::Tensor& choices, std::int64_t first_position, const at::Tensor& logits,
       const at::Tensor& u)
      : tokens(choices), first(2 * first_position), count(2 * choices.size(1)) {
    const at::Tensor of_keys = chosen(logits);
    largest = count > 0 ? of_keys.amax(1)
                        : at::full({tokens.size(0)}, -std::numeric_limits<double>::infinity(),
                                   logits.options());
    e = (of_keys - largest.unsqueeze(1)).exp();
    eu = e * chosen(u);
    z = e.sum(1);
    n = eu.sum(1);
  }

  // [rows, positions]
  at::Tensor chosen(const at::Tensor& values) const {
    const at::Tensor pairs = values.narrow(0, first, count).reshape({count / 2, 2});
    return at::where(tokens, pairs.select(1, 1), pairs.select(1, 0));
  }

  // Adds `values` [rows, positions] to the entries of the tokens that they belong to.
  void add(const at::Tensor& values, const at::Tensor& sums) const {
    const at::Tensor of_one = (values * tokens).sum(0);
    const at::Tensor of_zero = (values * tokens.logical_not()).sum(0);
    sums.narrow(0, first, count).add_(at::stack({of_zero, of_one}, 1).reshape({count}));
  }

  at::Tensor tokens;  // [rows, positions] bool
  std::int64_t first;
  std::int64_t count;
  at::Tensor largest;  // [rows]; -inf without positions
  at::Tensor e;        // [rows, positions]
  at::Tensor eu;
  at::Tensor z;  // [rows]
  at::Tensor n;
};

// The strings of `length` tokens whose last is `last`.
struct Strings {
  Strings(std::int64_t length, std::int64_t last, const at::Tensor& logits, const at::Tensor& u)
      : rows(all_tokens(length / 2, u.options()), 0, logits, u),
        columns(with_last(all_tokens(length - 1 - length / 2, u.options()), last), length / 2,
                logits, u),
        sign(at::where(length > 1 ? rows.tokens.narrow(1, 0, 1) == (last == 1)
                                  : at::full({1, 1}, true, rows.tokens.options()),
                       at::full({}, 1.0, u.options()), at::full({}, -1.0, u.options()))),
        step(std::max<std::int64_t>(1, kChunkElements / columns.z.size(0))) {}

  static at::Tensor with_last(const at::Tensor& tokens, std::int64_t last) {
    return at::cat({tokens, at::full({tokens.size(0), 1}, last == 1, tokens.options())}, 1);
  }

  at::Tensor of(const at::Tensor& all, std::int64_t begin) const {
    return all.narrow(0, begin, std::min(step, all.size(0) - begin));
  }

  Part rows;
  Part columns;
  at::Tensor sign;  // [rows, 1]: 1 where the first token is the last
  std::int64_t step;
};

// Rows begin.. and all columns.
struct Chunk {
  Chunk(const Strings& strings, std::int64_t begin) : sign(strings.of(strings.sign, begin)) {
    const at::Tensor of_rows = strings.of(strings.rows.largest, begin).unsqueeze(1);
    const at::Tensor largest = at::maximum(of_rows, strings.columns.largest);
    row_factor = (of_rows - largest).exp_();
    column_factor = (strings.columns.largest - largest).exp_();
    const at::Tensor n = row_factor * strings.of(strings.rows.n, begin).unsqueeze(1) +
                         column_factor * strings.columns.n;
    z = row_factor * strings.of(strings.rows.z, begin).unsqueeze(1) +
        column_factor * strings.columns.z;
    t = n / z;
  }

  at::Tensor losses() const {  // log(1 + exp(-y T))
    const at::Tensor x = -sign * t;
    return x.abs().neg_().exp_().log1p_() + x.clamp_min(0.0);
  }

  at::Tensor sign;
  at::Tensor row_factor;
  at::Tensor column_factor;
  at::Tensor z;
  at::Tensor t;
};

// Of one half: d loss/d Z and d loss/d N of its rows.
struct PartGradient {
  explicit PartGradient(const Part& part) : z(at::zeros_like(part.z)), n(at::zeros_like(part.n)) {}

  // N = sum e u, Z = sum e.
  void add_to(const Part& part, const at::Tensor& of_u, const at::Tensor& of_logits) const {
    part.add(part.e * n.unsqueeze(1), of_u);
    part.add(part.e * z.unsqueeze(1) + part.eu * n.unsqueeze(1), of_logits);
  }

  at::Tensor z;
  at::Tensor n;
};

// Adds the gradients of the mean loss of all strings to of_u and of_logits [2 Lmax].
void add_gradients(const Strings& strings, const at::Tensor& of_u, const at::Tensor& of_logits) {
  const std::int64_t num_rows = strings.rows.z.size(0);
  const auto num_strings = static_cast<double>(num_rows * strings.columns.z.size(0));
  const PartGradient of_rows(strings.rows);
  const PartGradient of_columns(strings.columns);
  for (std::int64_t begin = 0; begin < num_rows; begin += strings.step) {
    const Chunk chunk(strings, begin);
    const at::Tensor of_t = -chunk.sign * (-chunk.sign * chunk.t).sigmoid() / num_strings;
    const at::Tensor of_n = of_t / chunk.z;
    const at::Tensor of_z = -of_n * chunk.t;
    strings.of(of_rows.n, begin).copy_((of_n * chunk.row_factor).sum(1));
    strings.of(of_rows.z, begin).copy_((of_z * chunk.row_factor).sum(1));
    of_columns.n.add_((of_n * chunk.column_factor).sum(0));
    of_columns.z.add_((of_z * chunk.column_factor).sum(0));
  }
  of_rows.add_to(strings.rows, of_u, of_logits);
  of_columns.add_to(strings.columns, of_u, of_logits);
}

// Calls body(query, strings) for every length and last token.
template <class F>
void for_each_query(const at::Tensor& u, const at::Tensor& w, double attention_scale, F body) {
  const at::Tensor wide_u = u.to(at::kDouble);
  const at::Tensor logits = w.to(at::kDouble) / attention_scale;
  for (std::int64_t query = 0; query < u.size(0); ++query) {
    body(query, Strings(query / 2 + 1, query % 2, logits.select(1, query), wide_u));
  }
}

constexpr double kShare = 0.5;  // half of all strings of a length end in one token

}  // namespace

at::Tensor even_pairs_loss(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  const autocast::Off guard;
  const at::Tensor loss = at::zeros({}, u.options().dtype(at::kDouble));
  for_each_query(u, w, attention_scale, [&](std::int64_t, const Strings& strings) {
    const std::int64_t num_rows = strings.rows.z.size(0);
    const auto num_strings = static_cast<double>(num_rows * strings.columns.z.size(0));
    for (std::int64_t begin = 0; begin < num_rows; begin += strings.step) {
      loss.add_(Chunk(strings, begin).losses().sum() / num_strings, kShare);
    }
  });
  return loss.to(u.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> even_pairs_loss_backward(const at::Tensor& grad,
                                                            const at::Tensor& u,
                                                            const at::Tensor& w,
                                                            double attention_scale) {
  const autocast::Off guard;
  const at::TensorOptions options = u.options().dtype(at::kDouble);
  const at::Tensor of_u = at::zeros(u.sizes(), options);
  const at::Tensor of_logits = at::zeros(w.sizes(), options);
  for_each_query(u, w, attention_scale, [&](std::int64_t query, const Strings& strings) {
    add_gradients(strings, of_u, of_logits.select(1, query));
  });
  const at::Tensor scale = kShare * grad.to(at::kDouble);
  return {(scale * of_u).to(u.scalar_type()),
          (scale / attention_scale * of_logits).to(w.scalar_type())};
}

}  // namespace paperlab::ops::forms
