#include "paperlab/train/buckets.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "paperlab/train/shard.h"
#include "tests/paperlab/train/thread_processes.h"

namespace paperlab::train {
namespace {

using Plan = std::vector<std::vector<std::int64_t>>;

TEST(PlanBuckets, FillsFromTheLastToTheFirst) {
  const std::vector<std::int64_t> sizes = {4, 1, 2, 9, 3, 3};
  EXPECT_EQ(plan_buckets(sizes, 6), (Plan{{5, 4}, {3}, {2, 1}, {0}}));
  EXPECT_EQ(plan_buckets(sizes, 100), (Plan{{5, 4, 3, 2, 1, 0}}));
  EXPECT_EQ(plan_buckets(sizes, 1), (Plan{{5}, {4}, {3}, {2}, {1}, {0}}));
  EXPECT_EQ(plan_buckets(std::vector<std::int64_t>{0, 7, 0}, 7), (Plan{{2, 1, 0}}));
  EXPECT_TRUE(plan_buckets({}, 6).empty());
}

TEST(PlanOwners, BalancesAndIsComplete) {
  const std::vector<std::int64_t> sizes = {1, 8, 3, 3, 2, 8};
  EXPECT_EQ(plan_owners(sizes, 1), std::vector<std::int64_t>(6, 0));
  EXPECT_EQ(plan_owners(sizes, 3), (std::vector<std::int64_t>{0, 0, 2, 2, 2, 1}));
  // More processes than parameters: some own nothing.
  EXPECT_EQ(plan_owners(std::vector<std::int64_t>{5, 5}, 4), (std::vector<std::int64_t>{0, 1}));
}

// Parameters of growing sizes, all ones.
std::vector<at::Tensor> parameters(at::ScalarType type = at::kFloat) {
  std::vector<at::Tensor> all;
  for (const std::int64_t size : {2, 3, 4}) {
    all.push_back(at::ones({size}, type).requires_grad_());
  }
  return all;
}

// A gradient of k (i + 1) for parameter i, by two backward passes.
void backward_twice(std::vector<at::Tensor>& all, GradientBuckets& buckets, double k) {
  for (const bool is_last : {false, true}) {
    at::Tensor loss = at::zeros({}, all[0].options().requires_grad(false));
    for (std::size_t i = 0; i < all.size(); ++i) {
      loss = loss + (all[i] * (k / 2.0 * static_cast<double>(i + 1))).sum();
    }
    if (is_last) {
      buckets.arm();
    }
    loss.backward();
  }
}

TEST(GradientBuckets, AddUpWhatAllProcessesHave) {
  for (const std::int64_t bytes : {1, 20, 1000}) {
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const auto errors = in_threads(3, [&](const std::shared_ptr<Processes>& processes) {
        std::vector<at::Tensor> all = parameters(type);
        GradientBuckets buckets(all, processes, bytes);
        for (int step = 0; step < 2; ++step) {
          buckets.begin();
          backward_twice(all, buckets, static_cast<double>(processes->rank() + 1 + step));
          buckets.finish();
          EXPECT_EQ(buckets.found(), std::vector<bool>(3, true));
          buckets.assign(std::vector<double>(3, 3.0));
          for (std::size_t i = 0; i < all.size(); ++i) {
            const double wanted = (6.0 + 3.0 * step) * static_cast<double>(i + 1);
            EXPECT_TRUE(at::equal(all[i].grad(), at::full_like(all[i], wanted)));
            EXPECT_EQ(all[i].grad().scalar_type(), type);
            all[i].mutable_grad().reset();
          }
        }
      });
      EXPECT_EQ(errors, std::vector<std::exception_ptr>(3));
    }
  }
}

TEST(GradientBuckets, AParameterThatIsNotUsedHasNoGradient) {
  in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
    std::vector<at::Tensor> all = parameters();
    GradientBuckets buckets(all, processes, 1000);
    buckets.begin();
    buckets.arm();
    (processes->rank() == 0 ? all[1].sum() : all[2].sum() * 5.0).backward();
    buckets.finish();
    EXPECT_EQ(buckets.found(),
              (std::vector<bool>{false, processes->rank() == 0, processes->rank() == 1}));
    buckets.assign(std::vector<double>{0.0, 1.0, 1.0});
    EXPECT_FALSE(all[0].grad().defined());
    EXPECT_TRUE(at::equal(all[1].grad(), at::ones({3})));
    EXPECT_TRUE(at::equal(all[2].grad(), at::full({4}, 5.0)));
  });
}

TEST(GradientBuckets, AFailedBackwardLetsTheOthersGoOn) {
  const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
    std::vector<at::Tensor> all = parameters();
    GradientBuckets buckets(all, processes, 1);
    buckets.begin();
    if (processes->rank() == 0) {
      backward_twice(all, buckets, 1.0);
    }
    buckets.finish();
    const at::Tensor next = at::ones({1});  // the order of what follows is kept
    processes->start_sum(next)();
    EXPECT_EQ(next.item<double>(), 2.0);
  });
  EXPECT_EQ(errors, std::vector<std::exception_ptr>(2));
}

// Writes down when a sum begins.
class Log final : public Processes {
 public:
  explicit Log(std::vector<std::string>& lines) : lines_(lines) {}

  std::int64_t rank() const override { return 0; }
  std::int64_t size() const override { return 2; }
  Wait start_sum(const at::Tensor& x) override {
    lines_.push_back("sum of " + std::to_string(x.numel()));
    return [] {};
  }
  Wait start_copy(const at::Tensor& /*x*/, std::int64_t /*from*/) override {
    return [] {};
  }

 private:
  std::vector<std::string>& lines_;
};

TEST(GradientBuckets, SumsBeginWhileBackwardComputes) {
  std::vector<std::string> lines;
  std::vector<at::Tensor> all = {at::ones({2}).requires_grad_(), at::ones({3}).requires_grad_(),
                                 at::ones({4}).requires_grad_()};
  GradientBuckets buckets(all, std::make_shared<Log>(lines), 1);
  all[0].register_hook([&](const at::Tensor& /*grad*/) { lines.emplace_back("gradient of 2"); });
  const auto run = [&](const at::Tensor& loss) {
    lines.clear();
    buckets.begin();
    buckets.arm();
    loss.backward();
    buckets.finish();
    for (at::Tensor& parameter : all) {
      parameter.mutable_grad().reset();
    }
    return lines;
  };
  // Backward visits what was computed last first: here the last parameter's sum.
  at::Tensor first = all[0].sum();
  const at::Tensor second = all[1].sum();
  at::Tensor third = all[2].sum();
  EXPECT_EQ(run((first + second) * third),
            (std::vector<std::string>{"sum of 4", "sum of 3", "gradient of 2", "sum of 2"}));
  // Here the first one's: its gradient comes early, its sum in the order of the buckets.
  third = all[2].sum();
  first = all[0].sum();
  EXPECT_EQ(run((third + all[1].sum()) * first),
            (std::vector<std::string>{"gradient of 2", "sum of 4", "sum of 3", "sum of 2"}));
}

struct Counting final : torch::autograd::PostAccumulateGradHook {
  explicit Counting(int& to) : count(to) {}
  void operator()(const at::Tensor& /*parameter*/) override { ++count; }
  int& count;
};

TEST(GradientBuckets, LeaveOthersHooks) {
  namespace impl = torch::autograd::impl;
  int count = 0;
  std::vector<std::string> lines;
  std::vector<at::Tensor> all = parameters();
  impl::set_post_acc_grad_hooks(all[0], std::make_unique<Counting>(count));
  const auto* before = impl::post_acc_grad_hooks(all[0]).get();
  {
    GradientBuckets buckets(all, std::make_shared<Log>(lines), 1);
    all[0].sum().backward();
    EXPECT_EQ(count, 1);
    EXPECT_TRUE(lines.empty());  // not armed
    impl::set_post_acc_grad_hooks(all[1], std::make_unique<Counting>(count));
    buckets.begin();
    buckets.arm();
    (all[0].sum() + all[1].sum()).backward();
    EXPECT_EQ(count, 3);
    buckets.finish();
    EXPECT_EQ(buckets.found(), (std::vector<bool>{true, true, false}));
  }
  EXPECT_EQ(impl::post_acc_grad_hooks(all[0]).get(), before);
  EXPECT_NE(impl::post_acc_grad_hooks(all[1]), nullptr);
  EXPECT_EQ(impl::post_acc_grad_hooks(all[2]), nullptr);
}

}  // namespace
}  // namespace paperlab::train
