#include "paperlab/ops/attention.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "paperlab/core/rng.h"

namespace paperlab::ops {
namespace {

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kKeyHeads = 2;
constexpr std::int64_t kQueries = 3;
constexpr std::int64_t kKeys = 5;
constexpr std::int64_t kWidth = 4;

at::Tensor normal(at::IntArrayRef shape, std::uint64_t stream) {
  at::Tensor x = at::zeros(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.mutable_data_ptr<double>()[i] = philox_normal(7, stream, static_cast<std::uint64_t>(i));
  }
  return x;
}

struct Inputs {
  at::Tensor query = normal({kBatch, kHeads, kQueries, kWidth}, 0);
  at::Tensor key = normal({kBatch, kKeyHeads, kKeys, kWidth}, 1);
  at::Tensor value = normal({kBatch, kKeyHeads, kKeys, kWidth}, 2);
};

const double* row(const at::Tensor& x, std::int64_t b, std::int64_t h, std::int64_t t) {
  return x.const_data_ptr<double>() + ((b * x.size(1) + h) * x.size(2) + t) * kWidth;
}

// The row of causal attention, by the definition; its log-sum-exp behind it.
std::vector<double> exact_row(const Inputs& in, std::int64_t b, std::int64_t h, std::int64_t t) {
  const std::int64_t g = h / (kHeads / kKeyHeads);
  double z = 0.0;
  std::vector<double> out(kWidth + 1);
  for (std::int64_t n = 0; n <= t + kKeys - kQueries; ++n) {
    double s = 0.0;
    for (int d = 0; d < kWidth; ++d) {
      s += row(in.query, b, h, t)[d] * row(in.key, b, g, n)[d];
    }
    const double e = std::exp(s / std::sqrt(static_cast<double>(kWidth)));
    z += e;
    for (int d = 0; d < kWidth; ++d) {
      out[static_cast<std::size_t>(d)] += e * row(in.value, b, g, n)[d];
    }
  }
  for (double& x : out) {
    x /= z;
  }
  out[kWidth] = std::log(z);
  return out;
}

// Some twenty roundings of numbers below 4.
constexpr double kRounding = 20 * 4 * 0x1p-53;

TEST(AttentionOperatorTest, FollowsTheDefinition) {
  const Inputs in;
  const AttentionResult result = attention(in.query, in.key, in.value);
  ASSERT_EQ(result.out.sizes(), in.query.sizes());
  ASSERT_EQ(result.lse.sizes(), in.query.sizes().slice(0, 3));
  for (std::int64_t i = 0; i < kBatch * kHeads * kQueries; ++i) {
    const std::int64_t b = i / (kHeads * kQueries);
    const std::int64_t h = i / kQueries % kHeads;
    const std::int64_t t = i % kQueries;
    const std::vector<double> exact = exact_row(in, b, h, t);
    for (std::size_t d = 0; d < kWidth; ++d) {
      EXPECT_NEAR(row(result.out, b, h, t)[d], exact[d], kRounding);
    }
    EXPECT_NEAR(result.lse.const_data_ptr<double>()[i], exact[kWidth], kRounding);
  }
}

// A number that depends on every element of out and lse in its own way.
at::Tensor weighed(const AttentionResult& result) {
  return (result.out * normal(result.out.sizes(), 5)).sum() +
         (result.lse * normal(result.lse.sizes(), 6)).sum();
}

// The gradients of weighed(attention(...)) against central differences.
void expect_gradients(const Inputs& in, const AttentionOptions& options) {
  constexpr double kStep = 1e-5;  // errors: step^2 from the cut series, 2^-53 |objective| / step
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& x : {in.query, in.key, in.value, options.prefix_query, options.prefix_key,
                              options.prefix_value}) {
    if (x.defined()) {
      leaves.push_back(x);
      x.requires_grad_();
    }
  }
  const auto objective = [&] { return weighed(attention(in.query, in.key, in.value, options)); };
  objective().backward();
  const at::NoGradGuard no_grad;
  for (const at::Tensor& x : leaves) {
    ASSERT_TRUE(x.grad().defined());
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      double* value = x.mutable_data_ptr<double>() + i;
      const double before = *value;
      *value = before + kStep;
      const double above = objective().item<double>();
      *value = before - kStep;
      const double below = objective().item<double>();
      *value = before;
      EXPECT_NEAR(x.grad().const_data_ptr<double>()[i], (above - below) / (2 * kStep), 1e-8) << i;
    }
  }
}

TEST(AttentionOperatorTest, GradientsFollowCentralDifferences) {
  expect_gradients(Inputs(), {});
  expect_gradients(Inputs(), {.causal = false, .scale = 0.3});
  expect_gradients(Inputs(), {.window = 2});
  expect_gradients(Inputs(), {.key_start = at::tensor({0, 1}, at::kLong),
                              .key_end = at::tensor({5, 4}, at::kLong)});
}

TEST(AttentionOperatorTest, GradientsOfAPrefixFollowCentralDifferences) {
  const at::Tensor prefix_query = normal({kBatch, kHeads, kQueries, kWidth}, 7);
  const at::Tensor prefix_key = normal({kBatch, kKeyHeads, 2, kWidth}, 8);
  const at::Tensor prefix_value = normal({kBatch, kKeyHeads, 2, kWidth}, 9);
  expect_gradients(Inputs(), {.window = 1,
                              .prefix_key = prefix_key.clone(),
                              .prefix_value = prefix_value.clone(),
                              .prefix_group = 2});
  expect_gradients(Inputs(), {.window = 2,
                              .prefix_query = prefix_query,
                              .prefix_key = prefix_key,
                              .prefix_value = prefix_value});
}

TEST(AttentionOperatorTest, RowsWithoutKeysAreZero) {
  const Inputs in;
  in.query.requires_grad_();
  const AttentionResult result =
      attention(in.query, in.key, in.value, {.key_end = at::zeros({kBatch}, at::kLong)});
  result.out.sum().backward();
  EXPECT_TRUE(at::equal(result.out, at::zeros(in.query.sizes(), at::kDouble)));
  EXPECT_TRUE(at::equal(
      result.lse, at::full(in.query.sizes().slice(0, 3), -std::numeric_limits<double>::infinity())
                      .to(at::kDouble)));
  EXPECT_TRUE(at::equal(in.query.grad(), at::zeros(in.query.sizes(), at::kDouble)));
}

TEST(AttentionOperatorTest, TheBitsDoNotDependOnTheNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const at::Tensor query = normal({1, 2, 70, 16}, 0).to(dtype);
    const at::Tensor key = normal({1, 1, 130, 16}, 1).to(dtype).requires_grad_();
    at::Tensor outs[2];
    at::Tensor grads[2];
    for (int i = 0; i < 2; ++i) {
      at::set_num_threads(i + 1);
      outs[i] = attention(query, key, key).out;
      grads[i] = torch::autograd::grad({outs[i]}, {key}, {at::ones_like(outs[i])})[0];
    }
    EXPECT_TRUE(at::equal(outs[0], outs[1]));
    EXPECT_TRUE(at::equal(grads[0], grads[1]));
  }
  at::set_num_threads(before);
}

template <class E>
void expect_error(const Inputs& in, const AttentionOptions& options, const char* message) {
  try {
    attention(in.query, in.key, in.value, options);
    FAIL() << "no error; expected " << message;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST(AttentionOperatorTest, ErrorsNameTheArgument) {
  const Inputs in;
  expect_error<c10::ValueError>({.query = in.query[0]}, {},
                                "attention: query must be [B, H, T, D]");
  expect_error<c10::ValueError>({.query = at::Tensor()}, {}, "attention: query must be a tensor");
  expect_error<c10::ValueError>({.value = at::Tensor()}, {}, "attention: value must be a tensor");
  expect_error<c10::ValueError>(
      {.key = at::ones({kBatch, 3, kKeys, kWidth}, at::kDouble)}, {},
      "attention: key must be [B, G, S, D] with G a divisor of query's 4");
  expect_error<c10::ValueError>(in, {.causal = false, .window = 3},
                                "attention: window must be None unless causal, got 3");
  expect_error<c10::ValueError>(in, {.scale = NAN}, "attention: scale must be finite, got nan");
  expect_error<c10::ValueError>(in, {.key_end = at::full({kBatch}, 6, at::kLong)},
                                "attention: key_end must be in 0..5, got 6");
  expect_error<c10::TypeError>({.key = in.key.to(at::kFloat)}, {},
                               "attention: key must be of dtype Double, got Float");
  expect_error<c10::TypeError>({.query = in.query.to(at::kHalf)}, {},
                               "attention: query must be float32, float64 or bfloat16, got Half");
}

}  // namespace
}  // namespace paperlab::ops
