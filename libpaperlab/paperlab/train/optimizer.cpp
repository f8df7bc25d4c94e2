#include "paperlab/train/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>

#include "paperlab/core/error.h"
#include "paperlab/train/number_text_internal.h"

namespace paperlab::train {
namespace {

// State tensors by parameter: slots "exp_avg", ... made at a parameter's first step.
class SlotOptimizer : public Optimizer {
 public:
  SlotOptimizer(std::vector<Trained> parameters, const OptimizerOptions& options)
      : parameters_(std::move(parameters)), options_(options), slots_(parameters_.size()) {}

  NamedState state() const override {
    NamedState all;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      for (const auto& [slot, value] : slots_[i]) {
        all.emplace_back(parameters_[i].name + "." + slot, value);
      }
    }
    return all;
  }

  void load_state(const NamedState& state) override {
    const at::NoGradGuard no_grad;
    std::map<std::string, at::Tensor> values(state.begin(), state.end());
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Slots fresh = new_slots(parameters_[i].value);
      std::size_t num_found = 0;
      for (auto& [slot, value] : fresh) {
        const auto found = values.find(parameters_[i].name + "." + slot);
        if (found != values.end()) {
          require<ValueError>(found->second.sizes() == value.sizes(), "load_state",
                              "the shape of a fresh '" + found->first + "'", "another");
          value.copy_(found->second);
          values.erase(found);
          ++num_found;
        }
      }
      require<ValueError>(num_found == 0 || num_found == fresh.size(), "load_state",
                          "all state of '" + parameters_[i].name + "'", "a part");
      slots_[i].clear();
      if (num_found != 0) {
        slots_[i].swap(fresh);
      }
    }
    require<ValueError>(values.empty(), "load_state", "state of known parameters",
                        values.empty() ? "" : values.begin()->first);
  }

 protected:
  using Slots = std::map<std::string, at::Tensor>;

  virtual Slots new_slots(const at::Tensor& value) const = 0;

  // Calls `update` for each parameter with a gradient.
  void for_each(const std::function<void(const Trained&, const at::Tensor&, Slots&)>& update) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const at::Tensor& grad = parameters_[i].value.grad();
      if (grad.defined()) {
        if (slots_[i].empty()) {
          slots_[i] = new_slots(parameters_[i].value);
        }
        update(parameters_[i], grad, slots_[i]);
      }
    }
  }

  const OptimizerOptions& options() const { return options_; }

 private:
  std::vector<Trained> parameters_;
  OptimizerOptions options_;
  std::vector<Slots> slots_;
};

at::Tensor zero_step(const at::Device& device) {
  return at::zeros({}, at::TensorOptions(at::kFloat).device(device));
}

class AdamW final : public SlotOptimizer {
 public:
  using SlotOptimizer::SlotOptimizer;

  void step(double learning_rate) override {
    const at::NoGradGuard no_grad;
    std::map<double, Lists> groups;  // by decay: the operator has one for all
    for_each([&](const Trained& parameter, const at::Tensor& grad, Slots& slots) {
      Lists& lists = groups[parameter.weight_decay];
      lists.values.push_back(parameter.value);
      lists.grads.push_back(grad);
      lists.exp_avgs.push_back(slots.at("exp_avg"));
      lists.exp_avg_sqs.push_back(slots.at("exp_avg_sq"));
      slots.at("step").add_(1);
      lists.steps.push_back(slots.at("step"));
    });
    for (auto& [decay, lists] : groups) {
      at::_fused_adamw_(lists.values, lists.grads, lists.exp_avgs, lists.exp_avg_sqs, {},
                        lists.steps, learning_rate, options().beta1, options().beta2, decay,
                        options().eps, /*amsgrad=*/false, /*maximize=*/false);
    }
  }

 protected:
  Slots new_slots(const at::Tensor& value) const override {
    return {{"exp_avg", at::zeros_like(value)},
            {"exp_avg_sq", at::zeros_like(value)},
            {"step", zero_step(value.device())}};  // the operator reads it there
  }

 private:
  struct Lists {
    std::vector<at::Tensor> values, grads, exp_avgs, exp_avg_sqs, steps;
  };
};

class Sgd final : public SlotOptimizer {
 public:
  using SlotOptimizer::SlotOptimizer;

  void step(double learning_rate) override {
    const at::NoGradGuard no_grad;
    for_each([&](const Trained& parameter, const at::Tensor& grad, Slots& slots) {
      at::Tensor direction =
          parameter.weight_decay == 0.0 ? grad : grad.add(parameter.value, parameter.weight_decay);
      if (options().momentum != 0.0) {
        // From zeros the first step gives the gradient itself, as torch does.
        direction = slots.at("momentum").mul_(options().momentum).add_(direction);
      }
      at::Tensor value = parameter.value;
      value.add_(direction, -learning_rate);
    });
  }

 protected:
  Slots new_slots(const at::Tensor& value) const override {
    return options().momentum == 0.0 ? Slots() : Slots{{"momentum", at::zeros_like(value)}};
  }
};

// Of each row (dim -1) or column (dim -2).
at::Tensor mean_square(const at::Tensor& grad, std::int64_t dim) {
  return at::linalg_vector_norm(grad, 2, at::IntArrayRef(&dim, 1), /*keepdim=*/true)
      .square_()
      .div_(grad.size(dim));
}

double root_mean_square(const at::Tensor& x) {
  return at::linalg_vector_norm(x).item<double>() / std::sqrt(static_cast<double>(x.numel()));
}

class Adafactor final : public SlotOptimizer {
 public:
  using SlotOptimizer::SlotOptimizer;

  void step(double learning_rate) override {
    const at::NoGradGuard no_grad;
    for_each([&](const Trained& parameter, const at::Tensor& grad, Slots& slots) {
      const double step = slots.at("step").add_(1).item<double>();
      const double share = std::pow(step, kBeta2Decay);
      const double rate = std::min(learning_rate, 1.0 / std::sqrt(step));
      at::Tensor value = parameter.value;
      const double scale = std::max(kEps2, root_mean_square(value)) * rate;
      value.mul_(1.0 - learning_rate * parameter.weight_decay);
      const double eps = value.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                            : std::numeric_limits<float>::epsilon();
      const at::Tensor update =
          variance(grad, slots, share, eps).clamp_(eps * eps).rsqrt_().mul_(grad);
      value.add_(update, -scale / std::max(1.0, root_mean_square(update)));
    });
  }

 protected:
  Slots new_slots(const at::Tensor& value) const override {
    if (value.dim() < 2) {
      return {{"variance", at::zeros_like(value)}, {"step", zero_step(at::kCPU)}};
    }
    return {{"column_variance", at::zeros_like(value.narrow(-2, 0, 1))},
            {"row_variance", at::zeros_like(value.narrow(-1, 0, 1))},
            {"step", zero_step(at::kCPU)}};
  }

 private:
  static constexpr double kBeta2Decay = -0.8;
  static constexpr double kEps2 = 1e-3;

  static at::Tensor variance(const at::Tensor& grad, Slots& slots, double share, double eps) {
    if (grad.dim() < 2) {
      return slots.at("variance").lerp_(grad.square(), share).clone();
    }
    const at::Tensor rows = slots.at("row_variance").lerp_(mean_square(grad, -1), share);
    const at::Tensor columns = slots.at("column_variance").lerp_(mean_square(grad, -2), share);
    return at::matmul(rows, columns).div_(rows.mean(-2, true).clamp_(eps));
  }
};

}  // namespace

const char* name_of(OptimizerKind kind) {
  return kind == OptimizerKind::kSgd         ? "sgd"
         : kind == OptimizerKind::kAdafactor ? "adafactor"
                                             : "adamw";
}

std::unique_ptr<Optimizer> make_optimizer(std::vector<Trained> parameters,
                                          const OptimizerOptions& options) {
  const auto check = [](bool holds, const char* required, double got) {
    require<ValueError>(holds, "fit", required, number_text(got));
  };
  check(options.beta1 >= 0.0 && options.beta1 < 1.0, "betas must be in [0, 1)", options.beta1);
  check(options.beta2 >= 0.0 && options.beta2 < 1.0, "betas must be in [0, 1)", options.beta2);
  check(options.eps >= 0.0 && std::isfinite(options.eps), "eps must be finite and >= 0",
        options.eps);
  check(options.momentum >= 0.0 && std::isfinite(options.momentum),
        "momentum must be finite and >= 0", options.momentum);
  for (const Trained& parameter : parameters) {
    check(parameter.weight_decay >= 0.0 && std::isfinite(parameter.weight_decay),
          "weight_decay must be finite and >= 0", parameter.weight_decay);
  }
  switch (options.kind) {
    case OptimizerKind::kSgd:
      return std::make_unique<Sgd>(std::move(parameters), options);
    case OptimizerKind::kAdafactor:
      return std::make_unique<Adafactor>(std::move(parameters), options);
    case OptimizerKind::kAdamW:
      break;
  }
  return std::make_unique<AdamW>(std::move(parameters), options);
}

double clip_gradients(const std::vector<at::Tensor>& gradients, double most) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> norms;
  norms.reserve(gradients.size());
  for (const at::Tensor& grad : gradients) {
    const bool is_half = grad.scalar_type() == at::kBFloat16 || grad.scalar_type() == at::kHalf;
    const auto type = is_half ? std::optional(at::kFloat) : std::nullopt;
    norms.push_back(at::linalg_vector_norm(grad, 2, {}, false, type).to(at::kDouble));
  }
  const at::Tensor all = norms.empty() ? at::zeros({0}, at::kDouble) : at::stack(norms).cpu();
  double sum = 0.0;  // a device is waited for once
  for (std::int64_t i = 0; i < all.numel(); ++i) {
    const double norm = all.const_data_ptr<double>()[i];
    sum += norm * norm;
  }
  const double norm = std::sqrt(sum);
  const double factor = most / (norm + 1e-6);
  if (factor < 1.0) {
    for (const at::Tensor& grad : gradients) {
      grad.mul_(factor);
    }
  }
  return norm;
}

}  // namespace paperlab::train
