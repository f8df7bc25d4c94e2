#include "bench/support/eager_depth.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

namespace paperlab::bench {
namespace {

at::Tensor view_of(float* data, at::IntArrayRef sizes) { return at::from_blob(data, sizes); }

}  // namespace

std::string name_of(EagerDepthForm form) {
  switch (form) {
    case EagerDepthForm::kLoop:
      return "mul and add";
    case EagerDepthForm::kAddcmul:
      return "addcmul_";
    case EagerDepthForm::kBmm:
      return "bmm on a buffer";
    case EagerDepthForm::kStack:
      return "stack and bmm";
    case EagerDepthForm::kEinsum:
      return "einsum on a buffer";
  }
  return "";
}

struct EagerDepth::State {
  DepthPass pass;
  at::Tensor buffer;                // [L + 1, N, D]
  std::vector<at::Tensor> states;   // its slots
  std::vector<at::Tensor> weights;  // [N, C, J]
  std::vector<at::Tensor> w1, w2, bias;
  at::Tensor grad_out;                    // [C, N, D]
  std::vector<at::Tensor> grad_by_token;  // [N, C, D], for each number of ways
  at::Tensor grads;                       // [L + 1, N, D]
  // Of blocks whose weights are generated, for the gradients in place.
  std::vector<at::Tensor> inverse_rms, z, made_weights;
  std::vector<at::Tensor> streams;  // newest
  std::vector<at::Tensor> outputs;  // what record() keeps
  std::vector<at::Tensor> output_grads;
  std::vector<at::Tensor> leaves;
  bool is_buffer_leaf = false;

  // [C] of [N, D], or one [N, C, D] or [C, N, D].
  std::vector<at::Tensor> block(EagerDepthForm form, std::int64_t l, const at::Tensor& of) const {
    const std::int64_t count = pass.sources(l);
    if (form == EagerDepthForm::kLoop || form == EagerDepthForm::kAddcmul) {
      std::vector<at::Tensor> out;
      for (std::int64_t c = 0; c < pass.ways(l); ++c) {
        at::Tensor sum = states[0] * of.select(1, c).narrow(1, 0, 1);
        for (std::int64_t j = 1; j < count; ++j) {
          const at::Tensor weight = of.select(1, c).narrow(1, j, 1);
          const at::Tensor& x = states[static_cast<std::size_t>(j)];
          if (form == EagerDepthForm::kLoop) {
            sum = sum + x * weight;
          } else {
            sum.addcmul_(x, weight);
          }
        }
        out.push_back(sum);
      }
      return out;
    }
    if (form == EagerDepthForm::kStack) {
      const std::vector<at::Tensor> first(states.begin(), states.begin() + count);
      return {at::bmm(of, at::stack(first, 1))};
    }
    const at::Tensor first = buffer.narrow(0, 0, count);
    if (form == EagerDepthForm::kBmm) {
      return {at::bmm(of, first.transpose(0, 1))};
    }
    return {at::einsum("tcj,jtd->ctd", {of, first})};
  }

  at::Tensor generated(std::int64_t l) const {
    const auto at = static_cast<std::size_t>(l);
    const at::Tensor& x = states[at + 1];
    const at::Tensor normal = x * at::rsqrt(x.square().mean(-1, true) + 1e-6);
    const at::Tensor hidden = at::gelu(at::matmul(normal, w1[at]));
    return at::addmm(bias[at], hidden, w2[at]).view({pass.num_tokens, pass.ways(l), -1});
  }

  void forward(EagerDepthForm form, bool generates) {
    const at::NoGradGuard no_grad;
    for (std::int64_t l = 0; l < pass.num_blocks; ++l) {
      keep(form, l,
           block(form, l, generates ? generated(l) : weights[static_cast<std::size_t>(l)]));
    }
  }

  void keep(EagerDepthForm form, std::int64_t l, const std::vector<at::Tensor>& out) {
    if (l + 2 < pass.num_blocks) {
      return;
    }
    streams.resize(static_cast<std::size_t>(pass.num_ways));
    for (std::int64_t c = 0; c < pass.ways(l); ++c) {
      const bool is_list = form == EagerDepthForm::kLoop || form == EagerDepthForm::kAddcmul;
      streams[static_cast<std::size_t>(c)] =
          (is_list                           ? out[static_cast<std::size_t>(c)]
           : form == EagerDepthForm::kEinsum ? out[0].select(0, c)
                                             : out[0].select(1, c))
              .detach();
    }
  }

  void backward_bmm(std::int64_t l) {
    const auto at = static_cast<std::size_t>(l);
    const std::int64_t count = pass.sources(l);
    const bool generates = !made_weights.empty();
    const at::Tensor& of = generates ? made_weights[at] : weights[at];
    const at::Tensor& grad = grad_by_token[pass.ways(l) == 1 ? 0 : 1];
    at::Tensor to = grads.narrow(0, 0, count).transpose(0, 1);
    to.baddbmm_(of.transpose(1, 2), grad);
    const at::Tensor of_weights = at::bmm(grad, buffer.narrow(0, 0, count).permute({1, 2, 0}));
    if (generates) {
      backward_generator(at, of_weights.flatten(1));
    }
  }

  // All of them: of the bias, of the matrices, of the newest state.
  void backward_generator(std::size_t at, const at::Tensor& of_weights) {
    of_weights.sum(0);
    at::matmul(at::gelu(z[at]).t(), of_weights);
    const at::Tensor of_z = at::gelu_backward(at::matmul(of_weights, w2[at].t()), z[at]);
    const at::Tensor normal = states[at + 1] * inverse_rms[at];
    at::matmul(normal.t(), of_z);
    const at::Tensor of_normal = at::matmul(of_z, w1[at].t());
    const at::Tensor mean = (of_normal * normal).mean(-1, true);
    grads[static_cast<std::int64_t>(at) + 1].addcmul_(of_normal.sub_(normal * mean),
                                                      inverse_rms[at]);
  }

  void generate_all() {
    const at::NoGradGuard no_grad;
    for (std::int64_t l = 0; l < pass.num_blocks; ++l) {
      const auto at = static_cast<std::size_t>(l);
      const at::Tensor& x = states[at + 1];
      inverse_rms.push_back(at::rsqrt(x.square().mean(-1, true) + 1e-6));
      z.push_back(at::matmul(x * inverse_rms.back(), w1[at]));
      made_weights.push_back(generated(l));
    }
  }

  // dX_j += sum_c A G and dA = sum_d G X in place, block by block.
  void backward_in_place(EagerDepthForm form) {
    const at::NoGradGuard no_grad;
    grads.zero_();
    for (std::int64_t l = pass.num_blocks - 1; l >= 0; --l) {
      const at::Tensor& of = weights[static_cast<std::size_t>(l)];
      const std::int64_t count = pass.sources(l);
      if (form == EagerDepthForm::kBmm) {
        backward_bmm(l);
        continue;
      }
      for (std::int64_t j = 0; j < count; ++j) {
        at::Tensor to = grads[j];
        for (std::int64_t c = 0; c < pass.ways(l); ++c) {
          to.addcmul_(grad_out[c], of.select(1, c).narrow(1, j, 1));
          at::mul(grad_out[c], states[static_cast<std::size_t>(j)]).sum(-1);
        }
      }
    }
  }

  void make_leaves(EagerDepthForm form, bool generates) {
    is_buffer_leaf = form == EagerDepthForm::kBmm || form == EagerDepthForm::kEinsum;
    leaves.clear();
    if (is_buffer_leaf) {
      buffer = buffer.detach().requires_grad_();
      leaves.push_back(buffer);
    }
    for (std::size_t j = 0; j < states.size(); ++j) {
      states[j] = is_buffer_leaf ? buffer[static_cast<std::int64_t>(j)]
                                 : states[j].detach().requires_grad_();
      if (!is_buffer_leaf) {
        leaves.push_back(states[j]);
      }
    }
    for (std::vector<at::Tensor>* group : {&weights, &w1, &w2, &bias}) {
      for (at::Tensor& tensor : *group) {
        const bool is_leaf = (group == &weights) != generates;
        tensor = tensor.detach().requires_grad_(is_leaf);
        if (is_leaf) {
          leaves.push_back(tensor);
        }
      }
    }
  }

  at::Tensor grad_like(EagerDepthForm form, std::int64_t l, std::int64_t c) const {
    if (form == EagerDepthForm::kLoop || form == EagerDepthForm::kAddcmul) {
      return grad_out[c];
    }
    return form == EagerDepthForm::kEinsum ? grad_out.narrow(0, 0, pass.ways(l))
                                           : grad_by_token[pass.ways(l) == 1 ? 0 : 1];
  }
};

EagerDepth::EagerDepth(const DepthPass& pass) : state_(std::make_unique<State>()) {
  State& to = *state_;
  const std::int64_t n = pass.num_tokens;
  const std::int64_t d = pass.width;
  to.pass = pass;
  to.buffer = view_of(pass.states, {pass.num_blocks + 1, n, d});
  to.states = to.buffer.unbind(0);
  to.grad_out = view_of(pass.grad_out, {pass.num_ways, n, d});
  to.grad_by_token = {to.grad_out.narrow(0, 0, 1).transpose(0, 1).contiguous(),
                      to.grad_out.transpose(0, 1).contiguous()};
  for (std::int64_t l = 0; l < pass.num_blocks; ++l) {
    const auto at = static_cast<std::size_t>(l);
    const std::int64_t count = pass.ways(l) * pass.sources(l);
    to.weights.push_back(view_of(pass.weights[at], {n, pass.ways(l), pass.sources(l)}));
    to.w1.push_back(view_of(pass.w1[at], {d, count}));
    to.w2.push_back(view_of(pass.w2[at], {count, count}));
    to.bias.push_back(view_of(pass.bias[at], {count}));
  }
}

EagerDepth::~EagerDepth() = default;

void EagerDepth::forward(EagerDepthForm form) { state_->forward(form, false); }
void EagerDepth::forward_generated(EagerDepthForm form) { state_->forward(form, true); }

void EagerDepth::record(EagerDepthForm form, bool generates) {
  State& to = *state_;
  forget();
  if (form == EagerDepthForm::kBmm || (!generates && form == EagerDepthForm::kAddcmul)) {
    to.grads = at::zeros_like(to.buffer);
    if (generates) {
      to.generate_all();
    }
    return;
  }
  to.make_leaves(form, generates);
  for (std::int64_t l = 0; l < to.pass.num_blocks; ++l) {
    const auto out =
        to.block(form, l, generates ? to.generated(l) : to.weights[static_cast<std::size_t>(l)]);
    for (std::size_t c = 0; c < out.size(); ++c) {
      to.outputs.push_back(out[c]);
      to.output_grads.push_back(to.grad_like(form, l, static_cast<std::int64_t>(c)));
    }
  }
}

void EagerDepth::backward(EagerDepthForm form) {
  State& of = *state_;
  if (of.outputs.empty()) {
    of.backward_in_place(form);
    return;
  }
  for (at::Tensor& leaf : of.leaves) {
    leaf.mutable_grad().reset();
  }
  torch::autograd::backward(of.outputs, of.output_grads, true);
}

void EagerDepth::forget() {
  State& of = *state_;
  of.outputs.clear();
  of.output_grads.clear();
  of.leaves.clear();
  of.buffer = of.buffer.detach();
  of.states = of.buffer.unbind(0);
  for (std::vector<at::Tensor>* group : {&of.weights, &of.w1, &of.w2, &of.bias}) {
    for (at::Tensor& tensor : *group) {
      tensor = tensor.detach();
    }
  }
  of.grads = at::Tensor();
  for (std::vector<at::Tensor>* group : {&of.inverse_rms, &of.z, &of.made_weights}) {
    group->clear();
  }
}

double EagerDepth::stream(std::int64_t way, std::int64_t at) const {
  const std::int64_t d = state_->pass.width;
  return state_->streams[static_cast<std::size_t>(way)][at / d][at % d].item().toDouble();
}

double EagerDepth::grad_state(std::int64_t state, std::int64_t at) const {
  const State& of = *state_;
  const std::int64_t d = of.pass.width;
  const at::Tensor grad = of.outputs.empty()  ? of.grads[state]
                          : of.is_buffer_leaf ? of.buffer.grad()[state]
                                              : of.states[static_cast<std::size_t>(state)].grad();
  return grad[at / d][at % d].item().toDouble();
}

void set_depth_threads(int num_threads) { at::set_num_threads(num_threads); }

}  // namespace paperlab::bench
