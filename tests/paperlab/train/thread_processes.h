#pragma once
// Threads that stand for the processes of a run, for tests.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "paperlab/train/processes.h"

namespace paperlab::train {

// The operations that all threads begin in the same order, by number. The last to begin one does
// it.
class ThreadGroup {
 public:
  explicit ThreadGroup(std::int64_t size)
      : size_(size), num_begun_(static_cast<std::size_t>(size)) {}

  std::int64_t size() const { return size_; }

  // `from` < 0: a sum.
  Wait begin(std::int64_t rank, const at::Tensor& x, std::int64_t from) {
    const std::lock_guard lock(mutex_);
    check();
    const std::int64_t number = num_begun_[static_cast<std::size_t>(rank)]++;
    std::vector<std::pair<std::int64_t, at::Tensor>>& tensors = operations_[number];
    tensors.emplace_back(rank, x);
    if (static_cast<std::int64_t>(tensors.size()) == size_) {
      finish(tensors, from);
      operations_.erase(number);
      ++num_done_;
      changed_.notify_all();
    }
    return [this, number] {
      std::unique_lock waiting(mutex_);
      changed_.wait(waiting, [&] { return is_lost_ || num_done_ > number; });
      if (num_done_ <= number) {
        check();
      }
    };
  }

  // As if a process had ended.
  void lose() {
    const std::lock_guard lock(mutex_);
    is_lost_ = true;
    changed_.notify_all();
  }

 private:
  void check() const {
    if (is_lost_) {
      throw LostProcess("a thread was lost");
    }
  }

  static void finish(std::vector<std::pair<std::int64_t, at::Tensor>>& tensors, std::int64_t from) {
    std::sort(tensors.begin(), tensors.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    at::Tensor result = tensors[from < 0 ? 0 : static_cast<std::size_t>(from)].second.clone();
    for (std::size_t i = 1; from < 0 && i < tensors.size(); ++i) {
      result.add_(tensors[i].second);
    }
    for (auto& [rank, tensor] : tensors) {
      tensor.copy_(result);
    }
  }

  std::int64_t size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::int64_t> num_begun_;  // by rank
  std::int64_t num_done_ = 0;
  std::map<std::int64_t, std::vector<std::pair<std::int64_t, at::Tensor>>> operations_;
  bool is_lost_ = false;
};

class ThreadProcesses final : public Processes {
 public:
  ThreadProcesses(std::shared_ptr<ThreadGroup> group, std::int64_t rank)
      : group_(std::move(group)), rank_(rank) {}

  std::int64_t rank() const override { return rank_; }
  std::int64_t size() const override { return group_->size(); }
  Wait start_sum(const at::Tensor& x) override { return group_->begin(rank_, x, -1); }
  Wait start_copy(const at::Tensor& x, std::int64_t from) override {
    return group_->begin(rank_, x, from);
  }

 private:
  std::shared_ptr<ThreadGroup> group_;
  std::int64_t rank_;
};

using ThreadWork = std::function<void(std::shared_ptr<Processes> processes)>;

// Does the work in `size` threads; one that throws is lost for the others. Returns what each threw.
inline std::vector<std::exception_ptr> in_threads(std::int64_t size, const ThreadWork& work) {
  const auto group = std::make_shared<ThreadGroup>(size);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (std::int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);  // each would have workers of its own
      try {
        work(std::make_shared<ThreadProcesses>(group, rank));
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
        group->lose();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return errors;
}

}  // namespace paperlab::train
