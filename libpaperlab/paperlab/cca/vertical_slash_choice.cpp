#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "paperlab/cca/vertical_slash_internal.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::cca::vertical_slash {
namespace {

// The softmax of the last R queries of the heads of one key head, [H / G, R, T]. ops::linear and
// the softmax of a row have the same bits for any number of threads.
at::Tensor last_weights(const at::Tensor& query, const at::Tensor& key) {
  const std::int64_t length = query.size(1);
  const std::int64_t rows = std::min(kLastQueries, length);
  const double scale = 1.0 / std::sqrt(static_cast<double>(query.size(2)));
  const at::Tensor last = query.narrow(1, length - rows, rows);
  const at::Tensor logits = ops::linear(last.flatten(0, 1), key).mul_(scale);
  const at::TensorOptions longs = query.options().dtype(at::kLong);
  const at::Tensor position = at::arange(length - rows, length, longs).unsqueeze(1);
  const at::Tensor is_later = at::arange(length, longs).unsqueeze(0).gt(position);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  return at::softmax(logits.unflatten(0, {query.size(0), rows}).masked_fill(is_later, kNever), -1);
}

struct Sums {
  std::vector<double> columns;
  std::vector<double> diagonals;
};

template <class T>
Sums sums_of(const at::Tensor& weights) {  // [R, T], contiguous
  const std::int64_t rows = weights.size(0);
  const std::int64_t length = weights.size(1);
  Sums sums{std::vector<double>(static_cast<std::size_t>(length)),
            std::vector<double>(static_cast<std::size_t>(length))};
  const T* row = weights.const_data_ptr<T>();
  for (std::int64_t r = 0; r < rows; ++r, row += length) {
    const std::int64_t position = length - rows + r;
    for (std::int64_t t = 0; t <= position; ++t) {
      sums.columns[static_cast<std::size_t>(t)] += static_cast<double>(row[t]);
      sums.diagonals[static_cast<std::size_t>(position - t)] += static_cast<double>(row[t]);
    }
  }
  return sums;
}

// The first `forced` and the largest of the others, `count` in all, ascending; of equals the first.
void pick(const std::vector<double>& sums, std::int64_t forced, std::int64_t count,
          std::int64_t* picked) {
  std::vector<std::int64_t> order(sums.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto first = order.begin() + std::min<std::int64_t>(forced, count);
  const auto last = order.begin() + count;
  std::partial_sort(first, last, order.end(), [&](std::int64_t a, std::int64_t b) {
    const double of_a = sums[static_cast<std::size_t>(a)];
    const double of_b = sums[static_cast<std::size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  });
  std::sort(order.begin(), last);
  std::copy(order.begin(), last, picked);
}

}  // namespace

Choice choose(const at::Tensor& query, const at::Tensor& key, std::int64_t vertical,
              std::int64_t slash) {
  const std::int64_t batch = query.size(0);
  const std::int64_t heads = query.size(1);
  const std::int64_t length = query.size(2);
  const std::int64_t num_columns = std::min(length, std::max(vertical, kForcedColumns));
  const std::int64_t num_diagonals = std::min(length, std::max(slash, kForcedDiagonals));
  Choice choice{at::empty({batch, heads, num_columns}, at::kLong),
                at::empty({batch, heads, num_diagonals}, at::kLong)};
  auto* columns = choice.columns.mutable_data_ptr<std::int64_t>();
  auto* diagonals = choice.diagonals.mutable_data_ptr<std::int64_t>();
  const at::ScalarType dtype = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t group = key.size(1) == 0 ? 1 : heads / key.size(1);
  for (std::int64_t unit = 0; unit < batch * key.size(1); ++unit) {
    const std::int64_t row = unit / key.size(1);
    const std::int64_t head = unit % key.size(1);
    const at::Tensor weights =
        last_weights(query.select(0, row).narrow(0, head * group, group).to(dtype),
                     key.select(0, row).select(0, head).to(dtype))
            .cpu();
    parallel_for(ops::torch_executor(), group, [&](std::int64_t n, int) {
      const at::Tensor of_head = weights.select(0, n);
      const Sums sums = dtype == at::kDouble ? sums_of<double>(of_head) : sums_of<float>(of_head);
      const std::int64_t at = unit * group + n;
      pick(sums.columns, kForcedColumns, num_columns, columns + at * num_columns);
      pick(sums.diagonals, kForcedDiagonals, num_diagonals, diagonals + at * num_diagonals);
    });
  }
  return choice;
}

PastTokens::PastTokens(const at::Tensor& columns, const at::Tensor& diagonals, std::int64_t length)
    : is_column_(static_cast<std::size_t>(length)), is_near_(static_cast<std::size_t>(length + 1)) {
  const auto* column = columns.const_data_ptr<std::int64_t>();
  for (std::int64_t n = 0; n < columns.numel(); ++n) {
    is_column_[static_cast<std::size_t>(column[n])] = 1;
  }
  const auto* diagonal = diagonals.const_data_ptr<std::int64_t>();
  for (std::int64_t n = 0; n < diagonals.numel(); ++n) {
    const std::int64_t first = std::max<std::int64_t>(diagonal[n] - kBlock + 1, 1);
    std::fill(is_near_.begin() + first, is_near_.begin() + diagonal[n] + 1, 1);
  }
}

std::vector<std::int64_t> PastTokens::of_block(std::int64_t begin) const {
  std::vector<std::int64_t> tokens;
  for (std::int64_t t = 0; t < begin; ++t) {
    if (is_column_[static_cast<std::size_t>(t)] != 0 ||
        is_near_[static_cast<std::size_t>(begin - t)] != 0) {
      tokens.push_back(t);
    }
  }
  return tokens;
}

}  // namespace paperlab::cca::vertical_slash
