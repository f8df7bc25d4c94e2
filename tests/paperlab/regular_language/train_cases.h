#pragma once
// The two tasks of the paper at its scale, and a run with every step recorded.

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "paperlab/regular_language/train.h"

namespace paperlab::regular_language {

inline TrainOptions even_pairs(int max_length, Method method = Method::kTwoClass) {
  TrainOptions options;
  options.max_length = max_length;
  options.method = method;
  return options;
}

inline TrainOptions parity_cot(int base_length, Method method = Method::kTwoClass) {
  TrainOptions options;
  options.task = Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  options.method = method;
  return options;
}

inline TrainOptions recording(TrainOptions options, std::vector<std::int64_t> record) {
  options.num_steps = record.back();
  options.record = std::move(record);
  return options;
}

// Records from, from + 1, ..., to.
inline TrainOptions recording_all(TrainOptions options, std::int64_t from, std::int64_t to) {
  std::vector<std::int64_t> record(static_cast<std::size_t>(to - from + 1));
  std::iota(record.begin(), record.end(), from);
  return recording(std::move(options), std::move(record));
}

}  // namespace paperlab::regular_language
