// Chunks of logits in float64, number by number.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/linear_cross_entropy/cpu.h"

namespace paperlab::kernels {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();

double* row_of(const LogitsChunk& chunk, std::int64_t row) {
  return static_cast<double*>(chunk.data) + (row - chunk.rows.begin) * chunk.stride;
}

bool holds(IndexRange columns, std::int64_t target) {
  return target >= columns.begin && target < columns.end;
}

void add_logits(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                RowState* states) {
  const std::int64_t count = chunk.columns.size();
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const double* row = row_of(chunk, r);
    RowState& state = states[r];
    double most = state.most;
    for (std::int64_t v = 0; v < count; ++v) {
      most = row[v] > most ? row[v] : most;  // NaN does not count
    }
    const double shift = most == kLowest ? 0.0 : most;
    double sum = 0.0;
    for (std::int64_t v = 0; v < count; ++v) {
      sum += std::exp(row[v] - shift);
    }
    state = {most, state.sum * std::exp(state.most - shift) + sum, state.of_target};
    if (holds(chunk.columns, target[r])) {
      state.of_target = row[target[r] - chunk.columns.begin];
    }
  }
}

void to_gradients(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                  const RowGradient* rows_of_all) {
  const std::int64_t count = chunk.columns.size();
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    double* row = row_of(chunk, r);
    const RowGradient& of = rows_of_all[r];
    if (of.onehot == 0.0) {
      std::fill_n(row, count, 0.0);
      continue;
    }
    for (std::int64_t v = 0; v < count; ++v) {
      row[v] = std::exp(row[v] - of.lse) * of.factor;
    }
    if (holds(chunk.columns, target[r])) {
      row[target[r] - chunk.columns.begin] -= of.onehot;
    }
  }
}

void add_columns(const LogitsChunk& chunk, IndexRange columns, void* sums) {
  for (std::int64_t v = columns.begin; v < columns.end; ++v) {
    double sum = 0.0;
    for (std::int64_t r = chunk.rows.begin; r < chunk.rows.end; ++r) {
      sum += row_of(chunk, r)[v - chunk.columns.begin];
    }
    static_cast<double*>(sums)[v] += sum;
  }
}

void add(const void* from, std::int64_t count, void* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    static_cast<double*>(to)[i] += static_cast<const double*>(from)[i];
  }
}

}  // namespace

LogitsCpu logits_float64() {
  return {add_logits, to_gradients, add_columns, add, nullptr, nullptr};
}

}  // namespace paperlab::kernels
