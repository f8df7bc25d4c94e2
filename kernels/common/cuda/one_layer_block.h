#pragma once
// What one block of GPU threads does for the one-layer kernels, in host-device functions over a
// Team (team.h): tables of exponentials, the gradient of a string, sums of Q and R by position and
// token, and the gradient from these sums. No atomics; every sum has a fixed order.

#include <cmath>

#include "kernels/common/affine_strings.h"
#include "kernels/common/cuda/team.h"
#include "kernels/common/one_layer.h"

namespace paperlab::kernels {

constexpr int kBlockThreads = 128;
constexpr int kWarps = kBlockThreads / kWarp;
constexpr int kItemsPerThread = 4;  // independent chains that hide the latency of exp and 1 / x
constexpr int kItems = kItemsPerThread * kBlockThreads;
constexpr int kPositionsPerWarp = (kMaxStringLength + kWarps - 1) / kWarps;
constexpr int kTableSize = 2 * kMaxStringLength;

// Thread and slot to item: neighbouring threads read neighbouring words.
PAPERLAB_HD constexpr int item_of(int thread, int slot) { return thread + slot * kBlockThreads; }

// The positions of a string's last L tokens as bits.
PAPERLAB_HD constexpr std::uint32_t all_positions(int length) { return (1U << length) - 1U; }
PAPERLAB_HD constexpr int bit_of(std::uint32_t word, int l) {
  return static_cast<int>((word >> static_cast<unsigned>(l)) & 1U);
}

// Entry i of the table of one query; 0 for the last position's other token, which takes no part.
PAPERLAB_HD inline double table_entry(const double* w, int length, int query, double scale, int i) {
  const int unused = embedding_index(length - 1, 1 - query);
  double high = w[embedding_index(length - 1, query)];
  for (int j = 0; j < 2 * length; ++j) {
    high = j != unused && w[j] > high ? w[j] : high;
  }
  return i == unused ? 0.0 : std::exp((w[i] - high) / scale);
}

// (max - min) / scale of the logits in use.
PAPERLAB_HD inline double table_spread(const double* w, int length, int query, double scale) {
  double high = w[embedding_index(length - 1, query)];
  double low = high;
  for (int j = 0; j < 2 * length; ++j) {
    if (j != embedding_index(length - 1, 1 - query)) {
      high = w[j] > high ? w[j] : high;
      low = w[j] < low ? w[j] : low;
    }
  }
  return (high - low) / scale;
}

// Z and N, or their part over some positions.
struct ScorePart {
  double z;
  double n;
};

// Sum over `positions` of the tokens in `word`, one bit a position.
PAPERLAB_HD inline ScorePart score_part(QueryTable table, int length, std::uint32_t positions,
                                        std::uint32_t word) {
  ScorePart part{0.0, 0.0};
  for (int l = 0; l < length; ++l) {
    if (bit_of(positions, l) != 0) {
      const int at = embedding_index(l, bit_of(word, l));
      part.z += table.e[at];
      part.n += table.eu[at];
    }
  }
  return part;
}

// Q = c / Z and R = c T / Z of a string of label y, c = -y weight / (1 + exp(y T)).
PAPERLAB_HD inline Marginal string_marginal(double z, double n, double y, double weight) {
  const double inverse = 1.0 / z;
  const double t = n * inverse;
  const double c = -y * weight / (1.0 + std::exp(y * t));
  const double q = c * inverse;
  return {q, q * t};
}

// Strings (or columns) waiting to be summed: their tokens and their Q and R.
struct Items {
  double q[kItems];
  double r[kItems];
  std::uint32_t word[kItems];
};

// One thread's share of the sums: of each position of its warp, by token.
struct PositionSums {
  double q[kPositionsPerWarp][2];
  double r[kPositionsPerWarp][2];
};

PAPERLAB_HD constexpr int position_of(int thread, int slot) {
  return thread / kWarp + slot * kWarps;
}

PAPERLAB_HD inline void clear(PositionSums& sums) {
  PAPERLAB_UNROLL
  for (int slot = 0; slot < kPositionsPerWarp; ++slot) {
    sums.q[slot][0] = 0.0;
    sums.q[slot][1] = 0.0;
    sums.r[slot][0] = 0.0;
    sums.r[slot][1] = 0.0;
  }
}

// Adds this lane's share of the first `count` items.
PAPERLAB_HD inline void add_items(int thread, const Items& items, int count,
                                  std::uint32_t positions, PositionSums& sums) {
  for (int item = thread % kWarp; item < count; item += kWarp) {
    const double q = items.q[item];
    const double r = items.r[item];
    const std::uint32_t word = items.word[item];
    PAPERLAB_UNROLL
    for (int slot = 0; slot < kPositionsPerWarp; ++slot) {
      const int l = position_of(thread, slot);
      if (bit_of(positions, l) != 0) {
        const bool is_b = bit_of(word, l) != 0;
        sums.q[slot][0] += is_b ? 0.0 : q;
        sums.q[slot][1] += is_b ? q : 0.0;
        sums.r[slot][0] += is_b ? 0.0 : r;
        sums.r[slot][1] += is_b ? r : 0.0;
      }
    }
  }
}

// The sums of a block: output (position, token, Q or R), one value from each lane. A row has an odd
// number of doubles, so that the threads that add up rows read different banks.
constexpr int kNumOutputs = 4 * kMaxStringLength;
constexpr int kLaneStride = kWarp + 1;
PAPERLAB_HD constexpr int output_index(int l, int s, int is_r) { return 4 * l + 2 * s + is_r; }
PAPERLAB_HD constexpr int lane_index(int output, int lane) { return output * kLaneStride + lane; }
static_assert(kNumOutputs <= kBlockThreads);

PAPERLAB_HD inline void store_lanes(int thread, std::uint32_t positions, const PositionSums& sums,
                                    double* lanes) {
  PAPERLAB_UNROLL
  for (int slot = 0; slot < kPositionsPerWarp; ++slot) {
    const int l = position_of(thread, slot);
    if (bit_of(positions, l) != 0) {
      PAPERLAB_UNROLL
      for (int s = 0; s < 2; ++s) {
        lanes[lane_index(output_index(l, s, 0), thread % kWarp)] = sums.q[slot][s];
        lanes[lane_index(output_index(l, s, 1), thread % kWarp)] = sums.r[slot][s];
      }
    }
  }
}

PAPERLAB_HD inline double sum_lanes(const double* lanes, int output) {
  double sum = 0.0;
  for (int lane = 0; lane < kWarp; ++lane) {
    sum += lanes[lane_index(output, lane)];
  }
  return sum;
}

PAPERLAB_HD inline void write_output(Marginal* out, int output, double value) {
  Marginal& at = out[output / 2];
  if (output % 2 == 0) {
    at.q = value;
  } else {
    at.r = value;
  }
}

// OneLayerEvaluation without default values, as shared memory needs it.
struct EvaluationSum {
  double loss;
  double min_margin;
  std::int64_t num_correct;
};

PAPERLAB_HD inline EvaluationSum empty_evaluation() { return {0.0, HUGE_VAL, 0}; }

// The loss is max(0, -m) + log1p(exp(-|m|)), finite for every finite margin m = y T.
PAPERLAB_HD inline void add_margin(double m, double weight, EvaluationSum& to) {
  to.loss += weight * ((m < 0.0 ? -m : 0.0) + std::log1p(std::exp(-std::abs(m))));
  to.min_margin = m < to.min_margin ? m : to.min_margin;
  to.num_correct += m > 0.0 ? 1 : 0;
}

PAPERLAB_HD inline void add_evaluation(const EvaluationSum& part, EvaluationSum& to) {
  to.loss += part.loss;
  to.min_margin = part.min_margin < to.min_margin ? part.min_margin : to.min_margin;
  to.num_correct += part.num_correct;
}

// Adds up `sums` [kBlockThreads] in place, halves onto halves: the total is sums[0].
template <Team T>
PAPERLAB_HD void add_up(T& team, EvaluationSum* sums) {
  for (int half = kBlockThreads / 2; half > 0; half /= 2) {
    team.each([&](int thread, auto&) {
      if (thread < half) {
        add_evaluation(sums[thread + half], sums[thread]);
      }
    });
  }
}

// Threads of the block that serves one query: entries by parts.
constexpr int kSumEntries = 64;
constexpr int kSumParts = 8;
constexpr int kSumThreads = kSumEntries * kSumParts;
static_assert(kTableSize <= kSumEntries);

struct QuerySums {
  Marginal parts[kSumParts][kSumEntries];
};

// A query's tasks by the places of their marginals.
struct QueryTasks {
  const std::int64_t* marginals;
  int count;

  PAPERLAB_HD std::int64_t place(int task) const { return marginals[task]; }
};

// Writes column `column` of the gradient of w, and the query's part [2 length] of the gradient of
// u. Tasks: `count` of them and the place(task) of their marginals, as QueryTasks.
template <Team T, class Tasks = QueryTasks>
PAPERLAB_HD void sum_query(T& team, QuerySums& sums, const Marginal* marginals, Tasks tasks,
                           int length, QueryTable table, const OneLayerParameters& parameters,
                           double* gradient_w, double* part_of_u) {
  team.each([&](int thread, auto&) {
    const int i = thread % kSumEntries;
    Marginal sum{0.0, 0.0};
    for (int task = thread / kSumEntries; i < 2 * length && task < tasks.count; task += kSumParts) {
      const Marginal part = marginals[tasks.place(task) + i];
      sum.q += part.q;
      sum.r += part.r;
    }
    sums.parts[thread / kSumEntries][i] = sum;
  });
  team.each([&](int thread, auto&) {
    if (thread < 2 * length) {
      Marginal sum = sums.parts[0][thread];
      for (int part = 1; part < kSumParts; ++part) {
        sum.q += sums.parts[part][thread].q;
        sum.r += sums.parts[part][thread].r;
      }
      part_of_u[thread] = u_gradient(table.e[thread], sum);
      gradient_w[thread] =
          w_gradient(table.e[thread], parameters.u[thread], sum, parameters.attention_scale);
    }
    for (int i = thread; i < 2 * parameters.max_length; i += kSumThreads) {
      if (i >= 2 * length) {
        gradient_w[i] = 0.0;
      }
    }
  });
}

// Entry i of u's gradient from the parts [2 max_length queries, kTableSize]. A length's two queries
// are added first: where they balance, the gradient is exactly 0.
PAPERLAB_HD inline double sum_u_gradient(const double* parts, int max_length, int i) {
  double sum = 0.0;
  for (int length = i / 2 + 1; length <= max_length; ++length) {
    const double* a = parts + std::ptrdiff_t{embedding_index(length - 1, 0)} * kTableSize;
    sum += a[i] + a[kTableSize + i];
  }
  return sum;
}

}  // namespace paperlab::kernels
