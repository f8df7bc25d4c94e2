#pragma once
// What blocks of GPU threads do with chunks of logits: host-device functions over a Team
// (common/cuda/team.h). No atomics; every sum has an order that is a function of shapes alone.
//
// Logits are of type Sum (float, double for float64), their gradients of type T, the dtype of the
// operands: of 16 bits for bfloat16 and float16, since the products that follow read them.

#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "kernels/linear_cross_entropy/tile.h"

// A body with exponentials is long enough: unrolled, it would need more registers than there are.
#ifdef __CUDA_ARCH__
#define PAPERLAB_ROLLED _Pragma("unroll 1")
#else
#define PAPERLAB_ROLLED
#endif

namespace paperlab::kernels {

constexpr int kLogitsThreads = 256;

PAPERLAB_HD constexpr std::int64_t logits_blocks(std::int64_t count) {
  return (count + kLogitsThreads - 1) / kLogitsThreads;
}

// Numbers of a block's shared memory: of two sums over its threads.
constexpr int kSharedNumbers = sum_memory(kLogitsThreads, 2);

// Of a row's logits so far: the sum is of e^(logit - most). of_target is NaN until the target's
// logit has come, so that a target outside of the vocabulary gives a loss of NaN.
struct LogitsState {
  double most;
  double sum;
  double of_target;
};

// Of some rows: their losses, and how many count.
struct LossPart {
  double sum;
  double count;
};

// of_rows scales the gradients of logits, of_result the sums of products with them. Gradients of
// 16 bits are not scaled, so that none is lost below the smallest number.
struct GradientScale {
  double of_rows;
  double of_result;
};

// A chunk of logits, rows `stride` apart: a multiple of 8, the first one aligned to 16 bytes.
struct LogitsPass {
  void* logits;
  std::int64_t stride;
  IndexRange rows;
  IndexRange columns;
  const void* bias;            // [V]; absent: zeros
  const std::int64_t* target;  // [N]
  std::int64_t ignore_index;
};

PAPERLAB_HD inline bool holds(IndexRange range, std::int64_t index) {
  return index >= range.begin && index < range.end;
}

// Elements of T that a thread takes at once: a pack, but one of float64, whose exponential fills
// the registers of sm_90a.
template <class T>
constexpr int kOwnElements = sizeof(T) == 8 ? 1 : kPackSize<T>;

// Logits from column `at` of the chunk on with their bias; -infinity behind the last one.
template <class Sum, class T, int kCount>
PAPERLAB_HD void load_logits(const LogitsPass& pass, std::int64_t row, std::int64_t at,
                             Sum (&to)[kCount]) {
  const Sum* of_row = static_cast<const Sum*>(pass.logits) + row * pass.stride;
  const T* bias = static_cast<const T*>(pass.bias);
  constexpr int kSize = kOwnElements<Sum>;
  PAPERLAB_UNROLL
  for (int first = 0; first < kCount; first += kSize) {
    Sum numbers[kSize];
    if constexpr (kSize == 1) {
      numbers[0] = of_row[at + first];
    } else {
      unpack<Sum>(load_of_row(of_row, at + first, pass.stride, /*is_whole=*/true), numbers);
    }
    PAPERLAB_UNROLL
    for (int i = 0; i < kSize; ++i) {
      const std::int64_t column = at + first + i;
      const bool is_there = column < pass.columns.size();
      const Sum shift = is_there && bias != nullptr
                            ? static_cast<Sum>(to_number(bias[pass.columns.begin + column]))
                            : Sum{0};
      to[first + i] = is_there ? numbers[i] + shift : -static_cast<Sum>(INFINITY);
    }
  }
}

// e^(x - most), 0 where there is no number at all.
template <class Sum>
PAPERLAB_HD Sum exp_below(Sum x, Sum most) {
  return std::exp(x - (most == -static_cast<Sum>(INFINITY) ? Sum{0} : most));
}

template <class Sum>
struct LogitsRegisters {
  Sum most;
  Sum sum;
};

// Adds one thread's logits to its own.
template <class Sum, class T>
PAPERLAB_HD void add_own_logits(const LogitsPass& pass, std::int64_t row, int thread,
                                LogitsRegisters<Sum>& own) {
  constexpr int kSize = kOwnElements<Sum>;
  own = {-static_cast<Sum>(INFINITY), Sum{0}};
  PAPERLAB_ROLLED
  for (std::int64_t at = std::int64_t{thread} * kSize; at < pass.columns.size();
       at += std::int64_t{kLogitsThreads} * kSize) {
    Sum x[kSize];
    load_logits<Sum, T>(pass, row, at, x);
    Sum most = own.most;  // NaN does not count
    PAPERLAB_UNROLL
    for (int i = 0; i < kSize; ++i) {
      most = x[i] > most ? x[i] : most;
    }
    Sum sum{0};
    PAPERLAB_UNROLL
    for (int i = 0; i < kSize; ++i) {
      sum += exp_below(x[i], most);
    }
    own = {most, own.sum * exp_below(own.most, most) + sum};
  }
}

// The largest of all threads' numbers, for all of them.
template <class T, class Number, class Get>
PAPERLAB_HD void largest_of_threads(T& team, Number* memory, Get get) {
  combine_neighbours(team, kWarp, get, Larger{});
  team.each([&](int thread, auto& own) {
    if (thread % kWarp == 0) {
      memory[thread / kWarp] = get(thread, own);
    }
  });
  team.each([&](int thread, auto& own) {
    Number most = memory[0];
    for (int warp = 1; warp < kLogitsThreads / kWarp; ++warp) {
      most = Larger{}(memory[warp], most);
    }
    get(thread, own) = most;
  });
}

// Adds the logits of one row of the chunk to its state. memory: shared, kSharedNumbers numbers.
template <class Sum, class T, Team TeamType>
PAPERLAB_HD void add_logits_block(TeamType& team, Sum* memory, const LogitsPass& pass,
                                  std::int64_t row, LogitsState* states) {
  team.each([&](int thread, LogitsRegisters<Sum>& own) {
    add_own_logits<Sum, T>(pass, row, thread, own);
    memory[thread] = own.most;
  });
  largest_of_threads(team, memory + kLogitsThreads,
                     [](int, LogitsRegisters<Sum>& own) -> Sum& { return own.most; });
  team.each([&](int thread, LogitsRegisters<Sum>& own) {
    own.sum *= exp_below(memory[thread], own.most);
  });
  sum_threads<1>(team, kLogitsThreads, kLogitsThreads, memory,
                 [](int, LogitsRegisters<Sum>& own, int) -> Sum& { return own.sum; });
  team.each([&](int thread, LogitsRegisters<Sum>& own) {
    if (thread == 0) {
      LogitsState& state = states[pass.rows.begin + row];
      const double here = own.most;
      const double most = here > state.most ? here : state.most;
      state.sum = state.sum * exp_below(state.most, most) +
                  static_cast<double>(own.sum) * exp_below(here, most);
      state.most = most;
      const std::int64_t target = pass.target[pass.rows.begin + row];
      if (holds(pass.columns, target)) {
        const std::int64_t column = target - pass.columns.begin;
        Sum x[1];
        x[0] = static_cast<const Sum*>(pass.logits)[row * pass.stride + column];
        const T* bias = static_cast<const T*>(pass.bias);
        x[0] += bias == nullptr ? Sum{0} : static_cast<Sum>(to_number(bias[target]));
        state.of_target = x[0];
      }
    }
  });
}

// Numbers of shared memory of add_logits_block.
constexpr int kLogitsMemory = kLogitsThreads + kLogitsThreads / kWarp;

PAPERLAB_HD constexpr LogitsState empty_state() {
  return {-static_cast<double>(INFINITY), 0.0, static_cast<double>(NAN)};
}

// ---------------------------------------------------------------------------------------------

struct RowsPass {
  std::int64_t num_rows;
  const std::int64_t* target;
  std::int64_t ignore_index;
  Reduction reduction;
  double z_loss;
};

struct LossRegisters {
  LossPart part;
};

PAPERLAB_HD inline double& number_of(LossPart& part, int i) {
  return i == 0 ? part.sum : part.count;
}

// lse and loss of kLogitsThreads rows, and the sum of their losses.
template <class Sum, Team TeamType>
PAPERLAB_HD void finish_rows_block(TeamType& team, double* memory, const RowsPass& pass,
                                   const LogitsState* states, std::int64_t block, Sum* loss,
                                   Sum* lse, LossPart* parts) {
  team.each([&](int thread, LossRegisters& own) {
    const std::int64_t row = block * kLogitsThreads + thread;
    own.part = {0.0, 0.0};
    if (row < pass.num_rows) {
      const LogitsState& state = states[row];
      const double of_row = state.most + std::log(state.sum);
      if (pass.target[row] != pass.ignore_index) {
        own.part = {of_row - state.of_target + pass.z_loss * of_row * of_row, 1.0};
      }
      lse[row] = static_cast<Sum>(of_row);
      if (pass.reduction == Reduction::kNone) {
        loss[row] = static_cast<Sum>(own.part.sum);
      }
    }
  });
  sum_threads<2>(team, kLogitsThreads, kLogitsThreads, memory,
                 [](int, LossRegisters& own, int i) -> double& { return number_of(own.part, i); });
  team.each([&](int thread, LossRegisters& own) {
    if (thread == 0) {
      parts[block] = own.part;
    }
  });
}

// The loss of all rows from the parts of their blocks, one block. A mean of no rows is NaN.
template <class Sum, Team TeamType>
PAPERLAB_HD void finish_loss_block(TeamType& team, double* memory, const RowsPass& pass,
                                   const LossPart* parts, Sum* loss) {
  const std::int64_t count = logits_blocks(pass.num_rows);
  team.each([&](int thread, LossRegisters& own) {
    own.part = {0.0, 0.0};
    for (std::int64_t i = thread; i < count; i += kLogitsThreads) {
      own.part = {own.part.sum + parts[i].sum, own.part.count + parts[i].count};
    }
  });
  sum_threads<2>(team, kLogitsThreads, kLogitsThreads, memory,
                 [](int, LossRegisters& own, int i) -> double& { return number_of(own.part, i); });
  team.each([&](int thread, LossRegisters& own) {
    if (thread == 0) {
      const double divisor = pass.reduction == Reduction::kMean ? own.part.count : 1.0;
      *loss = static_cast<Sum>(own.part.sum / divisor);
    }
  });
}

// How the gradient of the loss comes to the rows, one block. Without rows that count, nothing.
template <class Sum, Team TeamType>
PAPERLAB_HD void gradient_scale_block(TeamType& team, double* memory, const RowsPass& pass,
                                      const Sum* grad_loss, bool scales_result,
                                      GradientScale* scale) {
  team.each([&](int thread, LossRegisters& own) {
    own.part = {0.0, 0.0};
    for (std::int64_t row = thread; row < pass.num_rows; row += kLogitsThreads) {
      own.part.count += pass.target[row] != pass.ignore_index ? 1.0 : 0.0;
    }
  });
  sum_threads<1>(team, kLogitsThreads, kLogitsThreads, memory,
                 [](int, LossRegisters& own, int) -> double& { return own.part.count; });
  team.each([&](int thread, LossRegisters& own) {
    if (thread == 0) {
      double all = 1.0;
      if (pass.reduction != Reduction::kNone) {
        const double divisor = pass.reduction == Reduction::kMean ? own.part.count : 1.0;
        all = divisor == 0.0 ? 0.0 : static_cast<double>(grad_loss[0]) / divisor;
      }
      const bool is_later = scales_result && all != 0.0;
      *scale = is_later ? GradientScale{1.0, all} : GradientScale{all, 1.0};
    }
  });
}

}  // namespace paperlab::kernels
