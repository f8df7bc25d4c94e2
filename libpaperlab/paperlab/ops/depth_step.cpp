// A step is one node of the autograd graph, chained to the next by `link`: a tensor of the shape of
// the states so far whose gradient is the buffer of theirs. Step i's backward pass gets it from
// step i + 1 (the last one makes it), adds what its streams send, and hands states 0..i-1 on as a
// view. Nobody but these nodes sees the link, so its gradient has one writer at a time; autograd
// itself never adds in place to memory that others hold.

#include "paperlab/ops/depth_step.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_step_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"

namespace paperlab::ops {
namespace {

using depth::Computed;
using depth::Generated;
using depth::ParameterGradients;
using depth::statistics_of;
using depth::Step;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr char kFunction[] = "DepthStates::push";

Step step_of(std::int64_t slot, std::int64_t first, const DepthWeights& weights,
             at::IntArrayRef sources) {
  const bool has_streams = weights.bias.defined();
  return {slot,
          first,
          has_streams ? sources.vec() : std::vector<std::int64_t>(),
          has_streams ? weights.bias.size(0) : 0,
          weights.eps,
          depth::gelu_form(kFunction, {weights.gelu.data(), weights.gelu.size()})};
}

// Zeros in the slots that no source fills.
void clear_unread(const Step& step, const at::Tensor& gradients) {
  for (std::int64_t state = step.first; state <= step.slot; ++state) {
    if (!std::binary_search(step.sources.begin(), step.sources.end(), state)) {
      gradients.select(0, state - step.first).zero_();
    }
  }
}

// A tensor of that shape without numbers.
at::Tensor new_link(const at::Tensor& slots, std::int64_t num_states) {
  return at::empty({1}, slots.options())
      .expand({num_states, slots.size(1), slots.size(2), slots.size(3)});
}

// Results of a backward pass that is recorded: a derivative of them would pass through an error.
void refuse_second_derivative(variable_list& results) {
  const auto node = torch::autograd::get_current_node();
  const auto error = std::make_shared<torch::autograd::Error>(
      "DepthStates: differentiable once", torch::autograd::edge_list(node->next_edges()));
  for (at::Tensor& result : results) {
    if (result.defined()) {
      result = result.tensor_data();
      torch::autograd::set_history(result, error);
    }
  }
}

// X_0 -> the first link.
class Start : public torch::autograd::Function<Start> {
 public:
  static at::Tensor forward(AutogradContext* /*context*/, const at::Tensor& first,
                            const at::Tensor& buffer) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    buffer.select(0, 0).copy_(first);
    return new_link(buffer, 1);
  }

  static variable_list backward(AutogradContext* /*context*/, const variable_list& grads) {
    variable_list results = {grads[0].select(0, 0)};
    results.resize(2);
    return results;
  }
};

class Push : public torch::autograd::Function<Push> {
  using Input = std::optional<at::Tensor>;  // autograd takes no tensor that is not defined

 public:
  // Returns the newest state, the streams and, if a state has a gradient, the link.
  static variable_list forward(AutogradContext* context, const Input& link, const at::Tensor& base,
                               const Input& delta, const Input& w1, const Input& w2,
                               const Input& bias, const at::Tensor& buffer, const Step& step) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Computed computed =
        depth::compute(step, buffer, base, or_none(delta), or_none(w1), or_none(w2), or_none(bias));
    save(*context, buffer, w1, w2, computed.generated, step);
    save_edges(*context, {link.has_value(), true, delta.has_value(), w1.has_value(), w2.has_value(),
                          bias.has_value()});
    context->saved_data["link_size"] = link.has_value() ? link->size(0) : 0;
    variable_list results = {buffer.select(0, step.slot)};
    results.insert(results.end(), computed.streams.begin(), computed.streams.end());
    if (step.first <= step.slot) {
      results.push_back(new_link(buffer, step.slot + 1 - step.first));
    } else {
      context->mark_non_differentiable({results[0]});
    }
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const bool is_recorded = at::GradMode::is_enabled();
    const at::NoGradGuard no_grad;
    const variable_list saved = context->get_saved_variables();
    const Step step = saved_step(*context);
    const auto streams = at::ArrayRef<at::Tensor>(grads).slice(1, step.num_ways);
    const bool has_streams = std::any_of(streams.begin(), streams.end(),
                                         [](const at::Tensor& grad) { return grad.defined(); });
    const bool has_link = step.first <= step.slot;
    const at::Tensor link = has_link ? grads.back() : at::Tensor();
    if (!has_streams && !grads[0].defined() && !link.defined()) {
      return variable_list(8);
    }
    const at::Tensor& slots = saved[0];
    const at::Tensor gradients =
        link.defined() ? link.contiguous() : new_gradients(step, slots, has_streams);
    ParameterGradients parameters;
    if (has_streams) {
      parameters = new_parameters(*context, slots, step, saved);
      depth::compute_backward(step, slots, {saved[1], saved[2], saved[3], saved[4], saved[5]},
                              streams, gradients, link.defined(), parameters);
    }
    variable_list results = results_of(*context, step, gradients, grads[0], parameters);
    if (is_recorded) {
      refuse_second_derivative(results);
    }
    return results;
  }

 private:
  static at::Tensor or_none(const Input& x) { return x.value_or(at::Tensor()); }

  // Autograd counts the inputs that are there.
  static void save_edges(AutogradContext& context, std::initializer_list<bool> are_there) {
    std::vector<std::int64_t> edges;
    std::int64_t count = 0;
    for (const bool is_there : are_there) {
      edges.push_back(is_there ? count++ : -1);
    }
    context.saved_data["edges"] = edges;
  }

  static bool is_wanted(AutogradContext& context, std::size_t input) {
    const std::int64_t edge = context.saved_data["edges"].toIntVector()[input];
    return edge >= 0 && context.needs_input_grad(static_cast<std::size_t>(edge));
  }

  // Matrices are saved as they came: a copy in the kernel's order is soon made again.
  static void save(AutogradContext& context, const at::Tensor& buffer, const Input& w1,
                   const Input& w2, const Generated& generated, const Step& step) {
    context.set_materialize_grads(false);
    context.save_for_backward({buffer.narrow(0, 0, step.slot + 1), or_none(w1), or_none(w2),
                               generated.weights, generated.z, generated.inverse_rms});
    context.saved_data["slot"] = step.slot;
    context.saved_data["first"] = step.first;
    context.saved_data["sources"] = step.sources;
    context.saved_data["num_ways"] = step.num_ways;
    context.saved_data["is_exact"] = step.gelu == kernels::GeluForm::kExact;
  }

  static Step saved_step(AutogradContext& context) {
    Step step;
    step.slot = context.saved_data["slot"].toInt();
    step.first = context.saved_data["first"].toInt();
    step.sources = context.saved_data["sources"].toIntVector();
    step.num_ways = context.saved_data["num_ways"].toInt();
    step.gelu = context.saved_data["is_exact"].toBool() ? kernels::GeluForm::kExact
                                                        : kernels::GeluForm::kTanh;
    return step;
  }

  // Given weights have gradients of statistics' type, which autograd casts.
  static ParameterGradients new_parameters(AutogradContext& context, const at::Tensor& slots,
                                           const Step& step, const variable_list& saved) {
    const auto make = [](bool is_wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
      return is_wanted ? at::empty(sizes, options) : at::Tensor();
    };
    if (!saved[1].defined()) {
      return {{},
              {},
              make(is_wanted(context, 5), saved[3].sizes(),
                   slots.options().dtype(statistics_of(slots)))};
    }
    const bool is_transposed = depth::lie_transposed(saved[1], saved[2]);
    const auto make_matrix = [&](std::size_t input, const at::Tensor& like) {
      const at::Tensor lying = is_transposed ? like.t() : like;
      const at::Tensor made = make(is_wanted(context, input), lying.sizes(), slots.options());
      return is_transposed && made.defined() ? made.t() : made;
    };
    return {make_matrix(3, saved[1]), make_matrix(4, saved[2]),
            make(is_wanted(context, 5), {step.num_ways, step.num_sources()}, slots.options())};
  }

  // Of states first..i; zeros where the streams' gradients will not be written.
  static at::Tensor new_gradients(const Step& step, const at::Tensor& slots, bool has_streams) {
    const std::int64_t count = std::max<std::int64_t>(0, step.slot + 1 - step.first);
    const std::vector<std::int64_t> sizes = {count, slots.size(1), slots.size(2), slots.size(3)};
    if (!has_streams) {
      return at::zeros(sizes, slots.options());
    }
    const at::Tensor gradients = at::empty(sizes, slots.options());
    clear_unread(step, gradients);
    return gradients;
  }

  static variable_list results_of(AutogradContext& context, const Step& step,
                                  const at::Tensor& gradients, const at::Tensor& grad_newest,
                                  const ParameterGradients& parameters) {
    variable_list results(8);
    if (step.first <= step.slot) {
      const std::int64_t link_size = context.saved_data["link_size"].toInt();
      results[1] = gradients.select(0, step.slot - step.first);
      if (grad_newest.defined()) {
        results[1].add_(grad_newest);
      }
      results[0] = link_size > 0 ? gradients.narrow(0, 0, link_size) : at::Tensor();
      results[2] = is_wanted(context, 2) ? results[1] : at::Tensor();
    }
    results[3] = parameters.w1;
    results[4] = parameters.w2;
    results[5] = parameters.bias;
    return results;
  }
};

std::optional<at::Tensor> input_of(const at::Tensor& x) {
  return x.defined() ? std::optional(x) : std::nullopt;
}

bool needs_grad(const at::Tensor& x) { return x.defined() && x.requires_grad(); }

void check_state(const char* function, const char* name, const at::Tensor& x,
                 const at::Tensor& like) {
  depth::check_like(function, name, x, "the first state", like);
  depth::check_sizes(function, name, x, like.sym_sizes());
}

void check_given(const at::Tensor& x, const at::Tensor& bias) {
  depth::check_like(kFunction, "bias", bias, "base", x);
  const bool is_static = bias.dim() == 2;
  const bool is_by_token =
      bias.dim() == 4 && bias.size(1) == x.size(0) && bias.size(2) == x.size(1);
  TORCH_CHECK_VALUE((is_static || is_by_token) && bias.size(0) >= 1 && bias.size(-1) >= 1,
                    kFunction, ": bias must be [C, J] or [C, ", x.size(0), ", ", x.size(1),
                    ", J] with C, J >= 1, got ", bias.sizes());
}

void check_sources(at::IntArrayRef sources, std::int64_t num_sources, std::int64_t newest) {
  bool is_right = static_cast<std::int64_t>(sources.size()) == num_sources &&
                  sources.front() >= 0 && sources.back() == newest;
  for (std::size_t j = 1; is_right && j < sources.size(); ++j) {
    is_right = sources[j - 1] < sources[j];
  }
  TORCH_CHECK_VALUE(is_right, kFunction, ": sources must be ", num_sources,
                    " state numbers, ascending, the last of them ", newest, ", got ", sources);
}

bool is_under_autocast(const at::Tensor& x) {
  const c10::DeviceType device = x.device().type();
  return at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
}

DepthWeights cast(const DepthWeights& weights, at::ScalarType dtype) {
  DepthWeights result = weights;
  for (at::Tensor* x : {&result.w1, &result.w2, &result.bias}) {
    *x = autocast::cast(*x, dtype);
  }
  return result;
}

}  // namespace

DepthStates::DepthStates(std::int64_t capacity, const at::Tensor& first) : capacity_(capacity) {
  constexpr char kThis[] = "DepthStates";
  TORCH_CHECK_VALUE(capacity >= 1, kThis, ": capacity must be >= 1, got ", capacity);
  TORCH_CHECK_VALUE(first.defined(), kThis, ": first must be a tensor, got none");
  depth::check_floating(kThis, "first", first);
  TORCH_CHECK_VALUE(first.dim() == 3 && first.size(2) >= 1, kThis,
                    ": first must be [B, T, D] with D >= 1, got ", first.sizes());
  refuse_forward_gradients(kThis, first);
  buffer_ = at::empty({capacity, first.size(0), first.size(1), first.size(2)}, first.options());
  if (at::GradMode::is_enabled() && first.requires_grad()) {
    link_ = Start::apply(first, buffer_);
  } else {
    const at::AutoDispatchBelowADInplaceOrView guard;
    buffer_.select(0, 0).copy_(first);
  }
}

void DepthStates::check_push(const at::Tensor& base, const at::Tensor& delta,
                             const DepthWeights& weights, at::IntArrayRef sources) const {
  TORCH_CHECK_VALUE(size_ < capacity_, kFunction, ": no state is left of ", capacity_);
  TORCH_CHECK_VALUE(base.defined(), kFunction, ": base must be a tensor, got none");
  const at::Tensor first = buffer_.select(0, 0);
  check_state(kFunction, "base", base, first);
  if (delta.defined()) {
    check_state(kFunction, "delta", delta, first);
  }
  const auto& [w1, w2, bias, eps, gelu] = weights;
  TORCH_CHECK_VALUE(w1.defined() == w2.defined() && (bias.defined() || !w1.defined()), kFunction,
                    ": w1 and w2 must come together, and with a bias");
  depth::check_eps(kFunction, eps, base);
  depth::gelu_form(kFunction, {gelu.data(), gelu.size()});
  if (!bias.defined()) {
    return;
  }
  if (w1.defined()) {
    depth::check_generator(kFunction, base, w1, w2, bias);
  } else {
    check_given(base, bias);
  }
  check_sources(sources, bias.size(-1), size_);
}

DepthStep DepthStates::push(const at::Tensor& base, const at::Tensor& delta,
                            const DepthWeights& weights, at::IntArrayRef sources) {
  if (!base.defined() || !is_under_autocast(buffer_)) {
    return push_as_given(base, delta, weights, sources);
  }
  const at::ScalarType dtype = buffer_.scalar_type();
  return push_as_given(autocast::cast(base, dtype), autocast::cast(delta, dtype),
                       cast(weights, dtype), sources);
}

DepthStep DepthStates::push_as_given(const at::Tensor& base, const at::Tensor& delta,
                                     const DepthWeights& weights, at::IntArrayRef sources) {
  check_push(base, delta, weights, sources);
  refuse_forward_gradients(kFunction, base, delta, weights.w1, weights.w2, weights.bias);
  const auto& [w1, w2, bias, eps, gelu] = weights;
  DepthStep result;
  if (at::GradMode::is_enabled() && (link_.defined() || needs_grad(base) || needs_grad(delta) ||
                                     needs_grad(w1) || needs_grad(w2) || needs_grad(bias))) {
    result = push_recorded(base, delta, weights, sources);
  } else {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result.streams =
        depth::compute(step_of(size_, first_, weights, sources), buffer_, base, delta, w1, w2, bias)
            .streams;
    result.newest = buffer_.select(0, size_);
  }
  ++size_;
  return result;
}

DepthStep DepthStates::push_recorded(const at::Tensor& base, const at::Tensor& delta,
                                     const DepthWeights& weights, at::IntArrayRef sources) {
  if (!link_.defined()) {  // what came before has no gradient
    first_ = needs_grad(base) || needs_grad(delta) ? size_ : size_ + 1;
  }
  variable_list results = Push::apply(input_of(link_), base, input_of(delta), input_of(weights.w1),
                                      input_of(weights.w2), input_of(weights.bias), buffer_,
                                      step_of(size_, first_, weights, sources));
  if (first_ <= size_) {
    link_ = std::move(results.back());
    results.pop_back();
  }
  DepthStep result = {std::move(results[0]), {}};
  result.streams.assign(results.begin() + 1, results.end());
  return result;
}

}  // namespace paperlab::ops
