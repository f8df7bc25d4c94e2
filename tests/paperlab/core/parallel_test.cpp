#include "paperlab/core/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "paperlab/core/error.h"

#if defined(__SANITIZE_THREAD__)
constexpr bool kHasThreadSanitizer = true;
#else
constexpr bool kHasThreadSanitizer = false;
#endif

namespace paperlab {
namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

TEST_P(ThreadPoolTest, RunsEveryTaskOnce) {
  for (const std::int64_t num_tasks : {0, 1, 2, 3, 7, 100, 10000}) {
    std::vector<std::atomic<int>> runs(index(num_tasks));
    parallel_for(pool_, num_tasks, [&](std::int64_t task, int) { ++runs[index(task)]; });
    EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](const auto& n) { return n == 1; }));
  }
}

TEST_P(ThreadPoolTest, ManyShortLoopsFollowOneAnother) {
  std::vector<std::int64_t> sums(3);
  for (int loop = 0; loop < 5000; ++loop) {
    parallel_for(pool_, 3, [&](std::int64_t task, int) { sums[index(task)] += task + 1; });
  }
  EXPECT_EQ(sums, (std::vector<std::int64_t>{5000, 10000, 15000}));
}

TEST_P(ThreadPoolTest, WakesTeamsThatHaveFallenAsleep) {
  for (int loop = 0; loop < 3; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> count{0};
    parallel_for(pool_, 100, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count, 100);
  }
}

TEST_P(ThreadPoolTest, NoTwoTasksAtATimeShareAWorker) {
  EXPECT_EQ(pool_.num_workers(), GetParam());
  std::vector<std::atomic<int>> busy(index(pool_.num_workers()));
  std::atomic<bool> is_shared{false};
  parallel_for(pool_, 1000, [&](std::int64_t, int worker) {
    ASSERT_GE(worker, 0);
    ASSERT_LT(worker, pool_.num_workers());
    is_shared = is_shared || ++busy[index(worker)] != 1;
    std::this_thread::yield();
    --busy[index(worker)];
  });
  EXPECT_FALSE(is_shared);
}

TEST_P(ThreadPoolTest, TheFirstExceptionArrivesAfterTheOtherTasksHaveEnded) {
  for (int loop = 0; loop < 20; ++loop) {
    std::atomic<int> ended{0};
    try {
      parallel_for(pool_, 50, [&](std::int64_t task, int) {
        if (task == 13) {
          throw std::runtime_error("task 13");
        }
        ++ended;
      });
      ADD_FAILURE() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "task 13");
    }
    if (pool_.num_workers() > 1) {
      EXPECT_EQ(ended, 49);
    }
    std::atomic<int> count{0};  // the team is usable afterwards
    parallel_for(pool_, 10, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count, 10);
  }
}

TEST_P(ThreadPoolTest, ALoopInsideALoopRunsOnTheSameThread) {
  std::atomic<int> inner{0};
  std::atomic<int> elsewhere{0};
  parallel_for(pool_, 8, [&](std::int64_t, int) {
    const auto here = std::this_thread::get_id();
    parallel_for(pool_, 5, [&](std::int64_t, int) {
      ++inner;
      elsewhere += std::this_thread::get_id() == here ? 0 : 1;
    });
  });
  EXPECT_EQ(inner, 40);
  if (pool_.num_workers() > 1) {
    EXPECT_EQ(elsewhere, 0);
  }
}

TEST_P(ThreadPoolTest, TwoCallersAtATimeBothFinish) {
  std::atomic<int> count{0};
  const auto call = [&] {
    for (int loop = 0; loop < 200; ++loop) {
      parallel_for(pool_, 10, [&](std::int64_t, int) { ++count; });
    }
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(count, 4000);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3),
                         testing::PrintToStringParamName());

TEST(ParallelTest, TwoThreadsWorkAtTheSameTime) {
  const ThreadPool pool(2);
  std::atomic<int> arrived{0};
  std::atomic<bool> met{false};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  parallel_for(pool, 2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2 && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    met = arrived == 2;
  });
  EXPECT_TRUE(met);
}

TEST(ParallelTest, TheSerialExecutorKeepsTheOrder) {
  std::vector<std::int64_t> order;
  parallel_for(serial_executor(), 5, [&](std::int64_t task, int worker) {
    EXPECT_EQ(worker, 0);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(serial_executor().num_workers(), 1);
}

TEST(ParallelTest, APoolThatNeverWorkedEnds) {
  for (int loop = 0; loop < 20; ++loop) {
    const ThreadPool pool(3);
  }
}

TEST(ParallelTest, PoolSizesOutsideTheBoundsAreRefused) {
  for (const int bad : {-1, 0, 1025}) {
    try {
      const ThreadPool pool(bad);
      ADD_FAILURE() << "no error";
    } catch (const ValueError& error) {
      EXPECT_EQ(error.what(),
                "ThreadPool: num_threads must be in 1..1024, got " + std::to_string(bad));
    }
  }
}

class DefaultExecutorTest : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(before_); }

  const int before_ = get_num_threads();
};

TEST_F(DefaultExecutorTest, StartsWithTheCpusOfTheProcess) {
  EXPECT_GE(before_, 1);
  EXPECT_LE(before_, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
}

TEST_F(DefaultExecutorTest, NumberOfThreadsCanBeSet) {
  for (const int n : {1, 3, 2}) {
    set_num_threads(n);
    EXPECT_EQ(get_num_threads(), n);
    EXPECT_EQ(default_executor()->num_workers(), n);
  }
}

TEST_F(DefaultExecutorTest, NumbersOutsideTheBoundsAreRefusedAndChangeNothing) {
  set_num_threads(2);
  for (const int bad : {-1, 0, 1025}) {
    try {
      set_num_threads(bad);
      ADD_FAILURE() << "no error";
    } catch (const ValueError& error) {
      EXPECT_EQ(error.what(), "set_num_threads: n must be in 1..1024, got " + std::to_string(bad));
    }
    EXPECT_EQ(get_num_threads(), 2);
  }
}

TEST_F(DefaultExecutorTest, AnExecutorInUseOutlivesAChange) {
  set_num_threads(2);
  const auto executor = default_executor();
  set_num_threads(1);
  std::atomic<int> count{0};
  parallel_for(*executor, 100, [&](std::int64_t, int) { ++count; });
  EXPECT_EQ(count, 100);
}

// What a forked child's default executor does: its exit status, 0 if it counted to 100 on two
// workers. It stops itself if it hangs.
int status_of_child() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::atomic<int> count{0};
    const auto executor = default_executor();
    parallel_for(*executor, 100, [&](std::int64_t, int) { ++count; });
    set_num_threads(2);
    parallel_for(*default_executor(), 100, [&](std::int64_t, int) { ++count; });
    _exit(count == 200 && get_num_threads() == 2 ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

TEST_F(DefaultExecutorTest, AForkedChildHasItsOwnTeam) {
  if (kHasThreadSanitizer) {
    GTEST_SKIP() << "the thread sanitizer ends a forked child that starts threads";
  }
  set_num_threads(2);
  std::atomic<int> count{0};
  parallel_for(*default_executor(), 100, [&](std::int64_t, int) { ++count; });
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(status_of_child(), 0);
  }
  parallel_for(*default_executor(), 100, [&](std::int64_t, int) { ++count; });
  EXPECT_EQ(count, 200);
}

}  // namespace
}  // namespace paperlab
