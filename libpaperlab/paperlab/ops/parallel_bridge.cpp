// The one file that is compiled with -fopenmp: at::parallel_for is a header template that is
// silently serial without it.

#include "paperlab/ops/parallel_bridge.h"

#include <ATen/Parallel.h>

#include <atomic>

namespace paperlab::ops {
namespace {

class TorchExecutor final : public Executor {
 public:
  // The loop of LibTorch runs over workers, not tasks: its chunks are fixed beforehand, and tasks
  // differ in length. Worker w is one iteration, so no two tasks at a time can share it.
  void run(std::int64_t num_tasks, Body body, void* context) const override {
    std::atomic<std::int64_t> next{0};
    at::parallel_for(0, num_workers(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) {
        while (true) {
          const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
          if (task >= num_tasks) {
            return;
          }
          body(context, task, static_cast<int>(worker));
        }
      }
    });
  }

  int num_workers() const override { return at::in_parallel_region() ? 1 : at::get_num_threads(); }
};

}  // namespace

const Executor& torch_executor() {
  static const TorchExecutor executor;
  return executor;
}

}  // namespace paperlab::ops
