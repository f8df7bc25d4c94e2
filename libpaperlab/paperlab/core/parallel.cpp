#include "paperlab/core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab {
namespace {

// About 50 microseconds of pauses: longer than the gap between two training steps.
constexpr int kSpins = 2000;

class SerialExecutor final : public Executor {
 public:
  void run(std::int64_t num_tasks, Body body, void* context) const override {
    for (std::int64_t task = 0; task < num_tasks; ++task) {
      body(context, task, 0);
    }
  }
  int num_workers() const override { return 1; }
};

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return std::max(1, CPU_COUNT(&set));
}

struct DefaultPool {
  std::mutex mutex;
  std::shared_ptr<const Executor> executor;
};

DefaultPool& default_pool() {
  static DefaultPool* pool = [] {
    // A forked child has none of the team's threads: it leaks the parent's pool and makes its own.
    pthread_atfork([] { default_pool().mutex.lock(); }, [] { default_pool().mutex.unlock(); },
                   [] {
                     new std::shared_ptr<const Executor>(std::move(default_pool().executor));
                     default_pool().mutex.unlock();
                   });
    return new DefaultPool;  // never destroyed: other statics may still use it at exit
  }();
  return *pool;
}

}  // namespace

const Executor& serial_executor() {
  static const SerialExecutor executor;
  return executor;
}

// A loop is over when its tasks are, not when the whole team has come: a worker that wakes late
// finds `remaining` at 0, or takes a task of the next loop. What a claimed task reads stays valid
// until it has ended, because the loop waits for it.
struct ThreadPool::State {
  std::atomic<bool> is_busy{false};  // a loop uses the team
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<std::uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> remaining{0};   // tasks that nobody has claimed
  std::atomic<std::int64_t> unfinished{0};  // tasks that have not ended
  std::int64_t num_tasks = 0;
  Body body = nullptr;
  void* context = nullptr;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  void run_task(std::int64_t task, int worker) {
    try {
      body(context, task, worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) {
        error = std::current_exception();
      }
    }
    unfinished.fetch_sub(1, std::memory_order_release);
  }

  void work(int worker) {
    std::int64_t left = remaining.load(std::memory_order_acquire);
    while (left > 0) {
      if (remaining.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
        run_task(num_tasks - left, worker);
        left = remaining.load(std::memory_order_acquire);
      }
    }
  }

  void wait_for_work(std::uint64_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (generation.load(std::memory_order_acquire) != seen) {
        return;
      }
      __builtin_ia32_pause();
    }
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
  }

  void serve(int worker) {
    std::uint64_t seen = 0;
    while (true) {
      wait_for_work(seen);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) {
        return;
      }
      work(worker);
    }
  }

  void announce() {
    {
      const std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  require<ValueError>(num_threads >= 1 && num_threads <= 1024, "ThreadPool",
                      "num_threads must be in 1..1024", std::to_string(num_threads));
  for (int worker = 1; worker < num_threads; ++worker) {
    state_->threads.emplace_back([state = state_.get(), worker] { state->serve(worker); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->announce();
  for (std::thread& thread : state_->threads) {
    thread.join();
  }
}

int ThreadPool::num_workers() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run(std::int64_t num_tasks, Body body, void* context) const {
  State& state = *state_;
  if (num_tasks < 2 || state.threads.empty() || state.is_busy.exchange(true)) {
    serial_executor().run(num_tasks, body, context);
    return;
  }
  state.num_tasks = num_tasks;
  state.body = body;
  state.context = context;
  state.error = nullptr;
  state.unfinished.store(num_tasks, std::memory_order_relaxed);
  state.remaining.store(num_tasks, std::memory_order_release);
  state.announce();
  state.work(0);
  while (state.unfinished.load(std::memory_order_acquire) != 0) {
    __builtin_ia32_pause();
  }
  const std::exception_ptr error = std::exchange(state.error, nullptr);
  state.is_busy.store(false, std::memory_order_release);
  if (error) {
    std::rethrow_exception(error);
  }
}

std::shared_ptr<const Executor> default_executor() {
  DefaultPool& pool = default_pool();
  const std::lock_guard lock(pool.mutex);
  if (!pool.executor) {
    pool.executor = std::make_shared<ThreadPool>(available_cpus());
  }
  return pool.executor;
}

void set_num_threads(int num_threads) {
  require<ValueError>(num_threads >= 1 && num_threads <= 1024, "set_num_threads",
                      "n must be in 1..1024", std::to_string(num_threads));
  DefaultPool& pool = default_pool();
  const std::lock_guard lock(pool.mutex);
  pool.executor = std::make_shared<ThreadPool>(num_threads);
}

int get_num_threads() { return default_executor()->num_workers(); }

}  // namespace paperlab
