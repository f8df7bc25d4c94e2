#pragma once
/// \file
/// Parallel loops: kernels get an executor and never choose threads themselves.
/// Results must not depend on the executor: tasks are functions of shapes and write disjoint
/// memory.

#include <cstdint>
#include <memory>
#include <type_traits>

#include "paperlab/core/export.h"

namespace paperlab {

/// Runs the tasks of a loop, each exactly once, on any threads.
class PAPERLAB_API Executor {
 public:
  using Body = void (*)(void* context, std::int64_t task, int worker);

  virtual ~Executor() = default;

  /// Calls body(context, task, worker) for each task in 0..num_tasks-1 and returns when all are
  /// done. `worker` is in 0..num_workers()-1 and no two tasks at a time share one.
  /// The first exception of a task is rethrown here after the others have ended.
  virtual void run(std::int64_t num_tasks, Body body, void* context) const = 0;

  virtual int num_workers() const = 0;
};

/// Runs everything on the calling thread.
PAPERLAB_API const Executor& serial_executor();

/// A fixed team of threads; the caller is worker 0. Idle workers spin for some microseconds before
/// they sleep, because a training step is shorter than a wake-up. One loop at a time: a second
/// caller, or a loop inside a loop, runs serially.
class PAPERLAB_API ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void run(std::int64_t num_tasks, Body body, void* context) const override;
  int num_workers() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Calls body(task, worker) for each task on `executor`.
template <class F>
void parallel_for(const Executor& executor, std::int64_t num_tasks, F&& body) {
  executor.run(
      num_tasks,
      [](void* context, std::int64_t task, int worker) {
        (*static_cast<std::remove_reference_t<F>*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

/// The pool that library functions use when no executor is given.
PAPERLAB_API std::shared_ptr<const Executor> default_executor();

/// Sets the number of threads of the default executor (at first: the CPUs this process may use).
/// \throws ValueError  if `num_threads` is outside 1..1024.
PAPERLAB_API void set_num_threads(int num_threads);
PAPERLAB_API int get_num_threads();

}  // namespace paperlab
