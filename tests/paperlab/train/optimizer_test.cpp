#include "paperlab/train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab::train {
namespace {

constexpr std::int64_t kSteps = 7;
constexpr double kRate = 0.1;

at::Tensor leaf(at::IntArrayRef shape, double shift) {
  const std::int64_t count = c10::multiply_integers(shape);
  return at::linspace(-1.0, 1.5, count, at::kDouble).add_(shift).reshape(shape).requires_grad_();
}

at::Tensor gradient(const at::Tensor& value, std::int64_t step) {
  return (value.detach() * 3 + static_cast<double>(step)).sin();
}

std::vector<Trained> parameters() {
  return {{"matrix", leaf({3, 4}, 0.0), 0.2}, {"vector", leaf({5}, 0.3), 0.0}};
}

void take_step(const std::vector<Trained>& trained, Optimizer& optimizer, std::int64_t step) {
  for (const Trained& parameter : trained) {
    parameter.value.mutable_grad() = gradient(parameter.value, step);
  }
  optimizer.step(kRate);
}

// arXiv:1711.05101, algorithm 2, element by element.
TEST(AdamW, IsThatOfThePaper) {
  const auto trained = parameters();
  const auto definition = parameters();
  OptimizerOptions options;
  options.eps = 1e-3;
  const auto optimizer = make_optimizer(trained, options);
  std::vector<std::vector<double>> m(2), v(2);
  for (std::int64_t step = 0; step < kSteps; ++step) {
    take_step(trained, *optimizer, step);
    for (std::size_t k = 0; k < 2; ++k) {
      const at::Tensor grad = gradient(definition[k].value, step);
      auto* x = definition[k].value.mutable_data_ptr<double>();
      m[k].resize(static_cast<std::size_t>(grad.numel()));
      v[k].resize(m[k].size());
      for (std::size_t i = 0; i < m[k].size(); ++i) {
        const double g = grad.const_data_ptr<double>()[i];
        const auto t = static_cast<double>(step + 1);
        m[k][i] = 0.9 * m[k][i] + 0.1 * g;
        v[k][i] = 0.95 * v[k][i] + 0.05 * g * g;
        const double first = m[k][i] / (1 - std::pow(0.9, t));
        const double second = v[k][i] / (1 - std::pow(0.95, t));
        x[i] -= kRate * definition[k].weight_decay * x[i];
        x[i] -= kRate * first / (std::sqrt(second) + 1e-3);
      }
    }
  }
  for (std::size_t k = 0; k < 2; ++k) {
    EXPECT_LT((trained[k].value - definition[k].value).abs().max().item<double>(), 1e-13);
  }
}

TEST(Optimizer, AParameterWithoutAGradientStays) {
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kSgd, OptimizerKind::kAdafactor}) {
    const auto trained = parameters();
    const at::Tensor before = trained[1].value.detach().clone();
    const auto optimizer = make_optimizer(trained, {.kind = kind, .momentum = 0.5});
    trained[0].value.mutable_grad() = gradient(trained[0].value, 0);
    optimizer->step(kRate);
    EXPECT_TRUE(at::equal(trained[1].value, before));
    for (const auto& [name, value] : optimizer->state()) {
      EXPECT_EQ(name.rfind("matrix.", 0), 0U) << name;
    }
  }
}

TEST(Optimizer, StateContinuesToTheSameBits) {
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kSgd, OptimizerKind::kAdafactor}) {
    const OptimizerOptions options = {.kind = kind, .momentum = 0.5};
    const auto whole = parameters();
    const auto optimizer = make_optimizer(whole, options);
    for (std::int64_t step = 0; step < 3; ++step) {
      take_step(whole, *optimizer, step);
    }
    const auto parts = parameters();
    {
      const at::NoGradGuard no_grad;
      for (std::size_t k = 0; k < parts.size(); ++k) {
        at::Tensor value = parts[k].value;
        value.copy_(whole[k].value);
      }
    }
    const auto second = make_optimizer(parts, options);
    second->load_state(optimizer->state());
    for (std::int64_t step = 3; step < kSteps; ++step) {
      take_step(whole, *optimizer, step);
      take_step(parts, *second, step);
    }
    for (std::size_t k = 0; k < parts.size(); ++k) {
      EXPECT_TRUE(at::equal(whole[k].value, parts[k].value));
    }
  }
}

TEST(Optimizer, RefusesStateThatIsNotItsOwn) {
  const auto trained = parameters();
  const auto optimizer = make_optimizer(trained, {});
  take_step(trained, *optimizer, 0);
  NamedState state = optimizer->state();
  NamedState part(state.begin(), state.begin() + 2);
  EXPECT_THROW(optimizer->load_state(part), ValueError);
  NamedState other = state;
  other.emplace_back("unknown.exp_avg", at::zeros({2}));
  EXPECT_THROW(optimizer->load_state(other), ValueError);
  NamedState misshapen = state;
  misshapen[0].second = at::zeros({2}, at::kDouble);
  EXPECT_THROW(optimizer->load_state(misshapen), ValueError);
}

TEST(Optimizer, RefusesBadOptions) {
  const auto refused = [](const OptimizerOptions& options, double decay = 0.0) {
    std::vector<Trained> trained = {{"x", leaf({2}, 0.0), decay}};
    EXPECT_THROW(make_optimizer(trained, options), ValueError);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refused({.beta1 = 1.0});
  refused({.beta1 = -0.1});
  refused({.beta2 = nan});
  refused({.eps = -1.0});
  refused({.momentum = nan});
  refused({}, -0.1);
  refused({}, nan);
}

TEST(ClipGradients, MeasuresAndScales) {
  const std::vector<at::Tensor> grads = {at::full({4}, 3.0, at::kDouble),
                                         at::full({2, 2}, 4.0, at::kDouble)};
  EXPECT_DOUBLE_EQ(clip_gradients(grads, std::numeric_limits<double>::infinity()), 10.0);
  EXPECT_DOUBLE_EQ(grads[0][0].item<double>(), 3.0);
  EXPECT_DOUBLE_EQ(clip_gradients(grads, 10.5), 10.0);  // below: as they are
  EXPECT_DOUBLE_EQ(grads[0][0].item<double>(), 3.0);
  EXPECT_DOUBLE_EQ(clip_gradients(grads, 5.0), 10.0);
  EXPECT_DOUBLE_EQ(grads[0][0].item<double>(), 3.0 * 5.0 / (10.0 + 1e-6));
  EXPECT_EQ(clip_gradients({}, 1.0), 0.0);
}

// A sum of 4096 ones is 4096 in float32; bfloat16 would stop at 256.
TEST(ClipGradients, BFloat16HasANormOfFloat32) {
  EXPECT_DOUBLE_EQ(clip_gradients({at::full({4096}, 1.0, at::kBFloat16)}, 1e9), 64.0);
  EXPECT_DOUBLE_EQ(clip_gradients({at::full({4097}, 1.0, at::kBFloat16)}, 1e9),
                   static_cast<double>(std::sqrt(4097.0F)));
}

}  // namespace
}  // namespace paperlab::train
