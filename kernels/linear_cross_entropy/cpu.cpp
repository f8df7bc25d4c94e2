// Compiled once for each instruction set. The logits of a row lie in the lanes; four vectors at a
// time, so that chains of additions are short and overlap.
#include "kernels/linear_cross_entropy/cpu.h"

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

constexpr std::int64_t kGroup = 4 * kFloatLanes;

float* row_of(const LogitsChunk& chunk, std::int64_t row) {
  return static_cast<float*>(chunk.data) + (row - chunk.rows.begin) * chunk.stride;
}

// The first `count` lanes, then -infinity.
VecF load_or_lowest(const float* p, std::int64_t count) {
  VecF v = set1(-__builtin_inff());
  __builtin_memcpy(&v, p, static_cast<std::size_t>(count) * sizeof(float));
  return v;
}

// Calls body(vector of the group, first element) for whole groups and tail(first element, number
// of elements) for what is left.
template <class Body, class Tail>
inline void for_each_group(std::int64_t count, Body body, Tail tail) {
  std::int64_t v = 0;
  for (; v + kGroup <= count; v += kGroup) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      body(i, v + i * kFloatLanes);
    }
  }
  for (; v < count; v += kFloatLanes) {
    const std::int64_t left = count - v;
    tail(v, left < kFloatLanes ? left : std::int64_t{kFloatLanes});
  }
}

// NaN does not count.
float most_of(const float* row, std::int64_t count) {
  VecF most[4];
  for (VecF& v : most) {
    v = set1(-__builtin_inff());
  }
  for_each_group(
      count, [&](int i, std::int64_t v) { most[i] = max(load(row + v), most[i]); },
      [&](std::int64_t v, std::int64_t left) {
        most[0] = max(load_or_lowest(row + v, left), most[0]);
      });
  const VecF all = max(max(most[0], most[1]), max(most[2], most[3]));
  float result = all[0];
  for (int lane = 1; lane < kFloatLanes; ++lane) {
    result = all[lane] > result ? all[lane] : result;
  }
  return result;
}

float sum_of_exp(const float* row, std::int64_t count, float shift) {
  VecF sums[4] = {};
  for_each_group(
      count, [&](int i, std::int64_t v) { sums[i] += exp(load(row + v) - shift); },
      [&](std::int64_t v, std::int64_t left) {
        sums[0] += exp(load_or_lowest(row + v, left) - shift);
      });
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void add_logits(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                RowState* states) {
  const std::int64_t count = chunk.columns.size();
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const float* row = row_of(chunk, r);
    RowState& state = states[r];
    const auto before = static_cast<float>(state.most);
    const float here = most_of(row, count);
    const float most = here > before ? here : before;
    // Where all logits are -infinity, so is the result, and not the NaN of their difference.
    const float shift = most == -__builtin_inff() ? 0.0F : most;
    const double rescaled = state.sum * static_cast<double>(exp(set1(before - shift))[0]);
    state = {most, rescaled + static_cast<double>(sum_of_exp(row, count, shift)), state.of_target};
    if (target[r] >= chunk.columns.begin && target[r] < chunk.columns.end) {
      state.of_target = row[target[r] - chunk.columns.begin];
    }
  }
}

void to_gradients(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                  const RowGradient* rows_of_all) {
  const std::int64_t count = chunk.columns.size();
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    float* row = row_of(chunk, r);
    const RowGradient& of = rows_of_all[r];
    if (of.onehot == 0.0) {
      __builtin_memset(row, 0, static_cast<std::size_t>(count) * sizeof(float));
      continue;
    }
    const auto lse = static_cast<float>(of.lse);
    const auto factor = static_cast<float>(of.factor);
    for_each_group(
        count, [&](int, std::int64_t v) { store(row + v, exp(load(row + v) - lse) * factor); },
        [&](std::int64_t v, std::int64_t left) {
          store_row(row + v, left, exp(load_row(row + v, left) - lse) * factor);
        });
    if (target[r] >= chunk.columns.begin && target[r] < chunk.columns.end) {
      row[target[r] - chunk.columns.begin] -= static_cast<float>(of.onehot);
    }
  }
}

void add_columns(const LogitsChunk& chunk, IndexRange columns, void* sums) {
  auto* to = static_cast<float*>(sums) + columns.begin;
  for_each_vector(columns.size(), [&](std::int64_t v, std::int64_t count) {
    VecF sum = zero();
    for (std::int64_t r = chunk.rows.begin; r < chunk.rows.end; ++r) {
      sum += load_row(row_of(chunk, r) + columns.begin - chunk.columns.begin + v, count);
    }
    store_row(to + v, count, load_row(to + v, count) + sum);
  });
}

void add(const void* from, std::int64_t count, void* to) {
  const auto* source = static_cast<const float*>(from);
  auto* sums = static_cast<float*>(to);
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(sums + i, lanes, load_row(sums + i, lanes) + load_row(source + i, lanes));
  });
}

void widen(const std::uint16_t* from, std::int64_t count, float* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(to + i, lanes, load_row(from + i, lanes));
  });
}

void narrow(const float* from, std::int64_t count, std::uint16_t* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(to + i, lanes, load_row(from + i, lanes));
  });
}

}  // namespace

LogitsCpu logits_cpu() { return {add_logits, to_gradients, add_columns, add, widen, narrow}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
