#pragma once
/// \file
/// Independent tasks on several threads.

#include <cstddef>
#include <functional>

namespace paperlab::experiments {

/// What the calling thread does meanwhile.
struct WhileRunning {
  std::function<void(std::size_t task)> finished;  ///< After each task, in the order of their ends.
  std::function<void()> idle;                      ///< Some times a second.
};

/// Runs task(0) .. task(num_tasks - 1) on `num_threads` threads of their own, begun in this order.
/// After an exception no further task is begun, and it is thrown again once the others have ended.
void run_side_by_side(int num_threads, std::size_t num_tasks,
                      const std::function<void(std::size_t)>& task, const WhileRunning& meanwhile);

}  // namespace paperlab::experiments
