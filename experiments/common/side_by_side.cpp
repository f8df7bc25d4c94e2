#include "experiments/common/side_by_side.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace paperlab::experiments {
namespace {

constexpr auto kIdle = std::chrono::milliseconds(100);

class Workers {
 public:
  Workers(std::size_t num_tasks, const std::function<void(std::size_t)>& task)
      : num_tasks_(num_tasks), task_(task) {}

  void run(int num_threads, const WhileRunning& meanwhile) {
    const auto most = static_cast<std::size_t>(std::max(num_threads, 1));
    num_working_ = std::min(most, num_tasks_);
    std::vector<std::jthread> threads(num_working_);  // joined at the end of the scope
    for (std::jthread& thread : threads) {
      thread = std::jthread([this] { work(); });
    }
    try {
      watch(meanwhile);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      begun_ = num_tasks_;
      throw;
    }
    threads.clear();
    if (error_) {
      std::rethrow_exception(error_);
    }
  }

 private:
  void work() {
    for (std::size_t i = 0; next(i);) {
      std::exception_ptr error;
      try {
        task_(i);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      if (error) {
        error_ = error_ ? error_ : error;
        begun_ = num_tasks_;
      } else {
        ended_.push_back(i);
      }
      changed_.notify_one();
    }
    const std::lock_guard lock(mutex_);
    ++num_left_;
    changed_.notify_one();
  }

  bool next(std::size_t& task) {
    const std::lock_guard lock(mutex_);
    if (begun_ == num_tasks_) {
      return false;
    }
    task = begun_++;
    return true;
  }

  // Until all threads have left and all that has ended is reported.
  void watch(const WhileRunning& meanwhile) {
    for (bool goes_on = true; goes_on;) {
      std::vector<std::size_t> ended;
      {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, kIdle,
                          [this] { return !ended_.empty() || num_left_ == num_working_; });
        ended.swap(ended_);
        goes_on = num_left_ < num_working_;
      }
      for (const std::size_t task : ended) {
        meanwhile.finished(task);
      }
      meanwhile.idle();
    }
  }

  std::size_t num_tasks_;
  const std::function<void(std::size_t)>& task_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t begun_ = 0;
  std::size_t num_working_ = 0;
  std::size_t num_left_ = 0;
  std::vector<std::size_t> ended_;
  std::exception_ptr error_;
};

}  // namespace

void run_side_by_side(int num_threads, std::size_t num_tasks,
                      const std::function<void(std::size_t)>& task, const WhileRunning& meanwhile) {
  Workers(num_tasks, task).run(num_threads, meanwhile);
}

}  // namespace paperlab::experiments
