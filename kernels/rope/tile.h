#pragma once
// How B T positions are cut into tasks: functions of shapes alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

// Positions of a task: some 16384 numbers, ten microseconds of work.
PAPERLAB_HD constexpr std::int64_t positions_of_task(std::int64_t numbers_of_position) {
  constexpr std::int64_t kNumbers = 16384;
  return numbers_of_position >= kNumbers
             ? 1
             : kNumbers / (numbers_of_position + (numbers_of_position == 0));
}

}  // namespace paperlab::kernels
