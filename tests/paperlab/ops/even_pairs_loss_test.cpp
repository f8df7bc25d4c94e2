#include "paperlab/ops/even_pairs_loss.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "paperlab/core/rng.h"

namespace paperlab::ops {
namespace {

at::Tensor normal(at::IntArrayRef shape, std::uint64_t stream) {
  at::Tensor x = at::zeros(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.mutable_data_ptr<double>()[i] = philox_normal(7, stream, static_cast<std::uint64_t>(i));
  }
  return x;
}

struct Inputs {
  explicit Inputs(std::int64_t max_length)
      : u(normal({2 * max_length}, 0)), w(normal({2 * max_length, 2 * max_length}, 1)) {}
  at::Tensor u;
  at::Tensor w;
};

double entry(const at::Tensor& x, int i) { return x.const_data_ptr<double>()[i]; }

// log(1 + exp(-y T)) of string `bits` (bit l is the token of position l), by the definition.
double string_loss(const Inputs& in, int length, unsigned bits, double scale) {
  const auto index = [bits](int l) {
    return 2 * l + static_cast<int>(bits >> static_cast<unsigned>(l) & 1U);
  };
  const int width = static_cast<int>(in.u.size(0));
  double z = 0.0;
  double n = 0.0;
  for (int l = 0; l < length; ++l) {
    const double e = std::exp(entry(in.w, index(l) * width + index(length - 1)) / scale);
    z += e;
    n += e * entry(in.u, index(l));
  }
  const bool is_even = index(0) % 2 == index(length - 1) % 2;
  return std::log1p(std::exp(is_even ? -n / z : n / z));
}

double exact_loss(const Inputs& in, double scale) {
  double loss = 0.0;
  for (int length = 1; length <= in.u.size(0) / 2; ++length) {
    for (unsigned bits = 0; bits < (1U << static_cast<unsigned>(length)); ++bits) {
      loss += std::ldexp(string_loss(in, length, bits, scale), -length);
    }
  }
  return loss;
}

TEST(EvenPairsLossTest, FollowsTheDefinition) {
  for (const int max_length : {1, 2, 7}) {
    const Inputs in(max_length);
    for (const double scale : {0.5, 2.0}) {
      const double exact = exact_loss(in, scale);
      EXPECT_NEAR(even_pairs_loss(in.u, in.w, scale).item<double>(), exact, 1e-13 * exact);
    }
  }
}

TEST(EvenPairsLossTest, GradientsFollowCentralDifferences) {
  constexpr double kStep = 1e-5;
  const Inputs in(3);
  in.u.requires_grad_();
  in.w.requires_grad_();
  even_pairs_loss(in.u, in.w, 1.5).backward();
  const at::NoGradGuard no_grad;
  for (const at::Tensor& x : {in.u, in.w}) {
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      double* value = x.mutable_data_ptr<double>() + i;
      const double before = *value;
      *value = before + kStep;
      const double above = exact_loss(in, 1.5);
      *value = before - kStep;
      const double below = exact_loss(in, 1.5);
      *value = before;
      EXPECT_NEAR(x.grad().const_data_ptr<double>()[i], (above - below) / (2 * kStep), 1e-9) << i;
    }
  }
}

TEST(EvenPairsLossTest, TheBitsDoNotDependOnTheNumberOfThreads) {
  const int before = at::get_num_threads();
  const Inputs in(15);
  in.w.requires_grad_();
  at::Tensor losses[2];
  at::Tensor grads[2];
  for (int i = 0; i < 2; ++i) {
    at::set_num_threads(i + 1);
    in.w.mutable_grad() = at::Tensor();
    losses[i] = even_pairs_loss(in.u, in.w, 2.0);
    losses[i].backward();
    grads[i] = in.w.grad();
  }
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(losses[0], losses[1]));
  EXPECT_TRUE(at::equal(grads[0], grads[1]));
}

template <class E>
void expect_error(const at::Tensor& u, const at::Tensor& w, double scale, const char* message) {
  try {
    even_pairs_loss(u, w, scale);
    FAIL() << "no error; expected " << message;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST(EvenPairsLossTest, ErrorsNameTheArgument) {
  const at::Tensor u = at::ones({6}, at::kDouble);
  const at::Tensor w = at::zeros({6, 6}, at::kDouble);
  expect_error<c10::ValueError>(at::ones({5}, at::kDouble), w, 2.0,
                                "even_pairs_loss: u must be [2");
  expect_error<c10::ValueError>(u, at::zeros({6, 5}, at::kDouble), 2.0,
                                "even_pairs_loss: w must be [6, 6], got [6, 5]");
  expect_error<c10::ValueError>(at::full({6}, NAN, at::kDouble), w, 2.0,
                                "even_pairs_loss: u must be finite");
  expect_error<c10::ValueError>(u, at::full({6, 6}, INFINITY, at::kDouble), 2.0,
                                "even_pairs_loss: w must be finite");
  expect_error<c10::ValueError>(u, w, -1.0, "even_pairs_loss: attention_scale must be finite");
  expect_error<c10::TypeError>(at::ones({6}, at::kLong), w, 2.0,
                               "even_pairs_loss: u must be float");
  expect_error<c10::TypeError>(u, at::zeros({6, 6}, at::kFloat), 2.0,
                               "even_pairs_loss: w must be of the dtype");
}

}  // namespace
}  // namespace paperlab::ops
