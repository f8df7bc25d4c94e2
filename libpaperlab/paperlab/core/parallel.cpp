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

struct ThreadPool::State {
  std::mutex owner;  // held by the loop that uses the team
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<std::uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> next{0};
  std::atomic<int> running{0};
  std::int64_t num_tasks = 0;
  Body body = nullptr;
  void* context = nullptr;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  void work(int worker) {
    while (true) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks) {
        return;
      }
      try {
        body(context, task, worker);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) {
          error = std::current_exception();
        }
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
    for (std::uint64_t seen = 0;; ++seen) {
      wait_for_work(seen);
      if (stop.load(std::memory_order_acquire)) {
        return;
      }
      work(worker);
      running.fetch_sub(1, std::memory_order_release);
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
  const std::unique_lock owner(state.owner, std::try_to_lock);
  if (!owner.owns_lock() || state.threads.empty() || num_tasks < 2) {
    serial_executor().run(num_tasks, body, context);
    return;
  }
  state.num_tasks = num_tasks;
  state.body = body;
  state.context = context;
  state.error = nullptr;
  state.next.store(0, std::memory_order_relaxed);
  state.running.store(static_cast<int>(state.threads.size()), std::memory_order_relaxed);
  state.announce();
  state.work(0);
  while (state.running.load(std::memory_order_acquire) != 0) {
    __builtin_ia32_pause();
  }
  if (state.error) {
    std::rethrow_exception(state.error);
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
