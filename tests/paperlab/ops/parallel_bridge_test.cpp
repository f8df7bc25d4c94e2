#include "paperlab/ops/parallel_bridge.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace paperlab::ops {
namespace {

class ParallelBridgeTest : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(2); }
  void TearDown() override { at::set_num_threads(before_); }

 private:
  int before_ = at::get_num_threads();
};

TEST_F(ParallelBridgeTest, TwoThreadsRunAtTheSameTime) {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::atomic<int> num_arrived{0};
  parallel_for(torch_executor(), 2, [&](std::int64_t, int) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    ++num_arrived;  // each task waits for the other one
    while (num_arrived < 2 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(num_arrived, 2);
  EXPECT_EQ(threads.size(), 2U);
}

TEST_F(ParallelBridgeTest, EveryTaskRunsOnceAndNoWorkerIsShared) {
  constexpr int kTasks = 1000;
  std::vector<std::atomic<int>> runs(kTasks);
  std::vector<std::atomic<int>> busy(2);
  std::atomic<bool> is_shared{false};
  ASSERT_EQ(torch_executor().num_workers(), 2);
  parallel_for(torch_executor(), kTasks, [&](std::int64_t task, int worker) {
    auto& mine = busy.at(static_cast<std::size_t>(worker));
    is_shared = is_shared || mine.fetch_add(1) != 0;
    ++runs[static_cast<std::size_t>(task)];
    mine.fetch_sub(1);
  });
  EXPECT_FALSE(is_shared);
  for (const auto& count : runs) {
    EXPECT_EQ(count, 1);
  }
}

TEST_F(ParallelBridgeTest, ALongTaskDoesNotHoldUpTheOthers) {
  std::atomic<int> num_done{0};
  int seen_by_first = 0;
  parallel_for(torch_executor(), 9, [&](std::int64_t task, int) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (task == 0 && num_done < 8 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    seen_by_first = task == 0 ? num_done.load() : seen_by_first;
    ++num_done;
  });
  EXPECT_EQ(seen_by_first, 8);
}

TEST_F(ParallelBridgeTest, ALoopInsideALoopIsSerial) {
  std::atomic<int> num_runs{0};
  std::atomic<bool> is_serial{true};
  parallel_for(torch_executor(), 2, [&](std::int64_t, int) {
    const auto outer = std::this_thread::get_id();
    is_serial = is_serial && torch_executor().num_workers() == 1;
    parallel_for(torch_executor(), 4, [&](std::int64_t, int worker) {
      is_serial = is_serial && worker == 0 && std::this_thread::get_id() == outer;
      ++num_runs;
    });
  });
  EXPECT_TRUE(is_serial);
  EXPECT_EQ(num_runs, 8);
}

TEST_F(ParallelBridgeTest, AnExceptionComesThroughAndTheNextLoopRuns) {
  for (const int num_threads : {1, 2}) {
    at::set_num_threads(num_threads);
    EXPECT_THROW(parallel_for(torch_executor(), 8,
                              [](std::int64_t task, int) {
                                if (task == 5) {
                                  throw std::out_of_range("task 5");
                                }
                              }),
                 std::out_of_range);
    std::atomic<int> num_runs{0};
    parallel_for(torch_executor(), 8, [&](std::int64_t, int) { ++num_runs; });
    EXPECT_EQ(num_runs, 8);
  }
}

TEST_F(ParallelBridgeTest, NoTasksIsNoCall) {
  parallel_for(torch_executor(), 0, [](std::int64_t, int) { FAIL(); });
}

TEST_F(ParallelBridgeTest, FollowsTheNumberOfThreadsOfTorch) {
  at::set_num_threads(3);
  EXPECT_EQ(torch_executor().num_workers(), 3);
  at::set_num_threads(1);
  EXPECT_EQ(torch_executor().num_workers(), 1);
}

}  // namespace
}  // namespace paperlab::ops
