#pragma once
// Times a pass of attention against LibTorch's on the same memory, after the gate: a wrong result
// is not timed.

#include <map>
#include <memory>
#include <string>

#include "bench/support/attention_case.h"
#include "bench/support/attention_gate.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "paperlab/core/parallel.h"

namespace paperlab::bench {

class AttentionTimer {
 public:
  explicit AttentionTimer(int num_repetitions) : num_repetitions_(num_repetitions) {}

  // Each sets `row`'s timings and backend, or why the result is wrong. LibTorch uses as many
  // threads as `executor` has.
  void forward(const AttentionShape& shape, const Executor& executor, RatioRow& row);
  void backward(const AttentionShape& shape, const Executor& executor, RatioRow& row);

  // A single query over caches that take turns, so that none is found in the last-level cache. The
  // baseline is the better of two ways to share key heads. Also sets the roof: the same memory,
  // only read, in turn with the others.
  void one_query(const AttentionShape& shape, const Executor& executor, RatioRow& row);

  // The best read rate seen, by number of threads.
  const std::map<int, ReadRoof>& read_roofs() const { return read_roofs_; }

 private:
  const std::string& wrong_on_small(const AttentionShape& shape, Pass pass);
  const Buffer& arena(const AttentionShape& shape);
  const ReadRoof& roof(const Executor& executor);

  int num_repetitions_;
  std::map<std::string, std::string> small_results_;
  std::map<int, ReadRoof> read_roofs_;
  std::unique_ptr<Buffer> arena_;  // memory of the caches, filled with numbers of a dtype
  kernels::DType arena_dtype_ = kernels::DType::kFloat64;
};

}  // namespace paperlab::bench
