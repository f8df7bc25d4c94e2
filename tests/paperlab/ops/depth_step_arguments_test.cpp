// Arguments of a pass: tensors without data, and what is refused.

#include "paperlab/ops/depth_step.h"

#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/paperlab/ops/depth_step_network.h"

namespace paperlab::ops::depth_test {
namespace {

TEST(DepthStep, TensorsWithoutData) {
  const at::Tensor first = at::ones({2, 3, 4}, at::device(at::kMeta)).set_requires_grad(true);
  DepthStates states(2, first);
  const DepthStep step = states.push(first, first,
                                     {.w1 = at::ones({4, 5}, at::device(at::kMeta)),
                                      .w2 = at::ones({5, 6}, at::device(at::kMeta)),
                                      .bias = at::ones({3, 2}, at::device(at::kMeta))},
                                     {0, 1});
  ASSERT_EQ(step.streams.size(), 3U);
  EXPECT_EQ(step.streams[2].sizes(), first.sizes());
  EXPECT_TRUE(step.streams[2].requires_grad());
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    FAIL() << "no error for " << part;
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  } catch (const c10::TypeError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(DepthStep, WrongArgumentsAreRefused) {
  const at::Tensor x = normal({2, 3, 4}, 0);
  const at::Tensor one = at::ones({1, 2}, at::kDouble);
  const at::Tensor w1 = normal({4, 5}, 1);
  const at::Tensor w2 = normal({5, 2}, 1);
  expect_refused([&] { DepthStates(0, x); }, "DepthStates: capacity must be");
  expect_refused([&] { DepthStates(1, {}); }, "DepthStates: first must be a tensor");
  expect_refused([&] { DepthStates(1, x[0]); }, "DepthStates: first must be [B, T, D]");
  expect_refused([&] { DepthStates(1, x.to(at::kInt)); }, "DepthStates: first must be float32");
  DepthStates states(2, x);
  const auto push = [&](const at::Tensor& base, const at::Tensor& delta,
                        const DepthWeights& weights, const Sources& sources,
                        const std::string& part) {
    expect_refused([&] { states.push(base, delta, weights, sources); },
                   "DepthStates::push: " + part);
  };
  push({}, x, {}, {}, "base must be a tensor");
  push(x[0], {}, {}, {}, "base must be");
  push(x.to(at::kFloat), {}, {}, {}, "base must be of the dtype");
  push(x, x[0], {}, {}, "delta must be");
  push(x, x.to(at::kMeta), {}, {}, "delta must be on the device");
  push(x, x, {.w1 = w1}, {}, "w1 and w2 must come together");
  push(x, x, {.w1 = w1, .w2 = w2}, {}, "w1 and w2 must come together, and with a bias");
  push(x, x, {.w1 = w1[0], .w2 = w2, .bias = one}, {0, 1}, "w1 must be [4, K]");
  push(x, x, {.w1 = w1, .w2 = w1, .bias = one}, {0, 1}, "w2 must be [5, 2]");
  push(x, x, {.bias = one[0]}, {0, 1}, "bias must be [C, J] or [C, 2, 3, J]");
  push(x, x, {.bias = one.to(at::kFloat)}, {0, 1}, "bias must be of the dtype");
  push(x, x, {.bias = one, .eps = 0.0}, {0, 1}, "eps must be");
  push(x, x, {.bias = one, .gelu = "erf"}, {0, 1}, "gelu must be");
  for (const Sources& sources : {Sources{1}, Sources{1, 0}, Sources{1, 1}, Sources{-1, 1},
                                 Sources{0, 2}, Sources{0, 1, 2}, Sources{}}) {
    push(x, x, {.bias = one}, sources, "sources must be 2 state numbers");
  }
  EXPECT_EQ(states.size(), 1);
  states.push(x, x);
  push(x, x, {}, {}, "no state is left of 2");
}

}  // namespace
}  // namespace paperlab::ops::depth_test
