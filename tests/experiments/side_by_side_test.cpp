#include "experiments/common/side_by_side.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace paperlab::experiments {
namespace {

const WhileRunning kNothing = {[](std::size_t) {}, [] {}};

TEST(SideBySideTest, EachTaskRunsOnceAndIsReportedOnTheCallingThread) {
  for (const int num_threads : {1, 3, 8}) {
    std::vector<std::atomic<int>> runs(5);
    std::set<std::size_t> finished;
    const auto caller = std::this_thread::get_id();
    run_side_by_side(num_threads, runs.size(),
                     [&](std::size_t i) {
                       EXPECT_NE(std::this_thread::get_id(), caller);
                       ++runs[i];
                     },
                     {[&](std::size_t i) {
                        EXPECT_EQ(std::this_thread::get_id(), caller);
                        EXPECT_TRUE(finished.insert(i).second);
                      },
                      [] {}});
    EXPECT_EQ(finished.size(), runs.size());
    for (const auto& count : runs) {
      EXPECT_EQ(count, 1);
    }
  }
}

TEST(SideBySideTest, TasksOverlap) {
  std::atomic<int> inside = 0;
  run_side_by_side(
      2, 2,
      [&](std::size_t) {
        ++inside;
        while (inside < 2) {  // for ever if they ran one after another
          std::this_thread::yield();
        }
      },
      kNothing);
}

TEST(SideBySideTest, NoTaskBeginsAfterAnException) {
  std::atomic<int> begun = 0;
  EXPECT_THROW(run_side_by_side(
                   1, 10,
                   [&](std::size_t i) {
                     ++begun;
                     if (i == 2) {
                       throw std::runtime_error("went wrong");
                     }
                   },
                   kNothing),
               std::runtime_error);
  EXPECT_EQ(begun, 3);
}

TEST(SideBySideTest, AnExceptionOfTheCallerEndsTheWork) {
  std::atomic<int> begun = 0;
  const WhileRunning meanwhile = {[](std::size_t) { throw std::runtime_error("full disk"); },
                                  [] {}};
  EXPECT_THROW(run_side_by_side(
                   1, 1000,
                   [&](std::size_t) {
                     ++begun;
                     std::this_thread::sleep_for(std::chrono::milliseconds(5));
                   },
                   meanwhile),
               std::runtime_error);
  EXPECT_LT(begun, 1000);
}

TEST(SideBySideTest, NothingToDo) {
  run_side_by_side(2, 0, [](std::size_t) {}, kNothing);
}

}  // namespace
}  // namespace paperlab::experiments
