#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

#include "paperlab/ops/depth_step_internal.h"
#include "paperlab/ops/depth_torch_internal.h"

namespace paperlab::ops::depth {
namespace {

// How many sources from j on are neighbours.
std::int64_t run_from(const Step& step, std::int64_t j) {
  const auto source = [&step](std::int64_t i) { return step.sources[static_cast<std::size_t>(i)]; };
  std::int64_t count = 1;
  while (j + count < step.num_sources() && source(j + count) == source(j) + count) {
    ++count;
  }
  return count;
}

// [J, N, D] of slots [*, B, T, D]: the slots themselves where they are neighbours.
at::Tensor states_of(const Step& step, const at::Tensor& slots) {
  const at::Tensor all = slots.flatten(1, 2);
  if (run_from(step, 0) == step.num_sources()) {
    return all.narrow(0, step.sources.front(), step.num_sources());
  }
  std::vector<at::Tensor> states;
  states.reserve(step.sources.size());
  for (const std::int64_t source : step.sources) {
    states.push_back(all.select(0, source));
  }
  return at::stack(states);
}

// [C, N, J]
at::Tensor weights_of(const Step& step, const Generated& generated, std::int64_t num_tokens) {
  const at::Tensor& weights = generated.weights;
  if (!generated.is_given()) {
    return weights.unflatten(1, {step.num_ways, step.num_sources()}).permute({1, 0, 2});
  }
  return weights.dim() == 4
             ? weights.flatten(1, 2)
             : weights.unsqueeze(1).expand({step.num_ways, num_tokens, step.num_sources()});
}

// [C, N, D]; zeros where there is none.
at::Tensor stream_gradients(at::ArrayRef<at::Tensor> grads, const at::Tensor& newest) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& grad : grads) {
    all.push_back((grad.defined() ? grad : at::zeros(newest.sizes(), newest.options()))
                      .reshape({newest.size(0) * newest.size(1), newest.size(2)}));
  }
  return at::stack(all);
}

// Of given weights: of all tokens together where they have the same ones.
void write_given(const at::Tensor& to, const at::Tensor& of_tokens) {
  if (to.dim() == 4) {
    to.copy_(of_tokens.view(to.sizes()));
  } else {
    to.copy_(of_tokens.sum(1));
  }
}

// Writes the parameters' gradients; returns that of the newest state, [N, D], if it is wanted.
at::Tensor backward_generated(const Step& step, const Generated& generated,
                              const at::Tensor& newest, const at::Tensor& of_weights,
                              const ParameterGradients& parameters) {
  const at::Tensor rows = of_weights.permute({1, 0, 2}).flatten(1, 2);
  const std::array to = {&parameters.w1, &parameters.w2, &parameters.bias};
  const std::array<bool, 4> wanted = {step.slot >= step.first, to[0]->defined(), to[1]->defined(),
                                      to[2]->defined()};
  const std::array<at::Tensor, 4> found = generate_backward_torch(
      {newest, generated.w1, generated.w2, generated.z, generated.inverse_rms, step.gelu}, rows,
      wanted);
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (wanted[i + 1]) {
      to[i]->copy_(found[i + 1].view(to[i]->sizes()));
    }
  }
  return found[0];
}

// Of the sources that have gradients, in slots [i + 1 - first, n, D]: `part` [J, n, D].
void write_states(const Step& step, const at::Tensor& part, const at::Tensor& slots, bool adds) {
  for (std::int64_t j = 0; j < step.num_sources();) {
    const std::int64_t count = run_from(step, j);
    const std::int64_t source = step.sources[static_cast<std::size_t>(j)];
    const std::int64_t skipped = std::clamp<std::int64_t>(step.first - source, 0, count);
    if (skipped < count) {
      const at::Tensor to = slots.narrow(0, source + skipped - step.first, count - skipped);
      const at::Tensor from = part.narrow(0, j + skipped, count - skipped);
      adds ? to.add_(from) : to.copy_(from);  // either rounds once
    }
    j += count;
  }
}

}  // namespace

Computed compute_torch(const Step& step, const at::Tensor& slots, const at::Tensor& base,
                       const at::Tensor& delta, const at::Tensor& w1, const at::Tensor& w2,
                       const at::Tensor& bias) {
  const at::Tensor newest = slots.select(0, step.slot);
  write_newest(newest, base, delta);
  Computed computed = {{}, {w1, w2, {}, {}, {}}};
  Generated& generated = computed.generated;
  if (w1.defined()) {
    GeneratedTorch made = generate_torch(newest.flatten(0, 1), w1, w2, bias, step.eps, step.gelu);
    generated.weights = std::move(made.rows);
    generated.z = std::move(made.z);
    generated.inverse_rms = std::move(made.inverse_rms);
  } else {
    generated.weights = bias.contiguous();
  }
  const at::Tensor states = states_of(step, slots);
  const at::Tensor sums = sums_torch(states, weights_of(step, generated, states.size(1)));
  for (const at::Tensor& stream : sums.unbind(0)) {
    computed.streams.push_back(stream.view(newest.sizes()));
  }
  return computed;
}

void compute_backward_torch(const Step& step, const at::Tensor& slots, const Generated& generated,
                            at::ArrayRef<at::Tensor> grad_streams, const at::Tensor& gradients,
                            bool adds, const ParameterGradients& parameters) {
  const at::Tensor states = states_of(step, slots);
  const at::Tensor grad = stream_gradients(grad_streams, slots.select(0, step.slot));
  at::Tensor of_newest;  // through the generator
  if (!generated.is_given()) {
    of_newest = backward_generated(step, generated, states.select(0, step.num_sources() - 1),
                                   weight_gradients_torch(grad, states), parameters);
  } else if (parameters.bias.defined()) {
    write_given(parameters.bias, weight_gradients_torch(grad, states));
  }
  if (step.slot < step.first) {
    return;
  }
  const at::Tensor to = gradients.flatten(1, 2);
  state_gradients_torch(
      grad, weights_of(step, generated, states.size(1)), step.num_sources(),
      [&](std::int64_t first, const at::Tensor& part) {
        const std::int64_t count = part.size(1);
        if (of_newest.defined()) {
          part.select(0, step.num_sources() - 1).add_(of_newest.narrow(0, first, count));
        }
        write_states(step, part, to.narrow(1, first, count), adds);
      });
}

}  // namespace paperlab::ops::depth
