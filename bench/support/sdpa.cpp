#include "bench/support/sdpa.h"

#include <ATen/Parallel.h>
#include <ATen/SDPBackend.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

namespace paperlab::bench {
namespace {

using kernels::DType;
using kernels::KeyRuleKind;

at::ScalarType scalar_type(DType dtype) {
  return dtype == DType::kFloat32    ? at::kFloat
         : dtype == DType::kBFloat16 ? at::kBFloat16
                                     : at::kDouble;
}

at::Tensor tensor_of(const kernels::ConstTensorView& view) {
  return at::from_blob(const_cast<void*>(view.data), view.size, view.stride,
                       at::TensorOptions().dtype(scalar_type(view.dtype)));
}

// 0 where the rule lets a row see a key, else -infinity: [T, S].
at::Tensor mask_of(const kernels::AttentionInputs& inputs) {
  const std::int64_t num_queries = inputs.query.size[2];
  const std::int64_t num_keys = inputs.key.size[2];
  at::Tensor mask = at::full({num_queries, num_keys}, -std::numeric_limits<double>::infinity(),
                             at::TensorOptions().dtype(scalar_type(inputs.query.dtype)));
  for (std::int64_t t = 0; t < num_queries; ++t) {
    const kernels::VisibleKeys keys =
        inputs.rule.visible(kernels::key_position(t, num_queries, num_keys), 0, num_keys);
    mask.select(0, t).narrow(0, keys.begin, keys.end - keys.begin).zero_();
  }
  return mask;
}

std::vector<double> copied(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.to(at::kDouble).contiguous();
  const double* data = whole.const_data_ptr<double>();
  return {data, data + whole.numel()};
}

}  // namespace

struct Sdpa::State {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  std::optional<at::Tensor> mask;
  bool is_causal = false;
  bool is_grouped = false;
  double scale = 1.0;
  at::Tensor out;
  at::Tensor grad_out;
  std::tuple<at::Tensor, at::Tensor> of_flash;  // out and log-sum-exp
  std::tuple<at::Tensor, at::Tensor, at::Tensor> gradients;
};

Sdpa::Sdpa(const kernels::AttentionInputs& inputs, SdpaForm form)
    : state_(std::make_unique<State>()) {
  const auto& [batch, heads, queries, width] = inputs.query.size;
  const std::int64_t groups = inputs.key.size[1];
  const std::int64_t keys = inputs.key.size[2];
  state_->query = tensor_of(inputs.query);
  state_->key = tensor_of(inputs.key);
  state_->value = tensor_of(inputs.value);
  state_->scale = inputs.scale;
  // LibTorch aligns rows at the top left, so that a single query would see one key.
  state_->is_causal = inputs.rule.kind == KeyRuleKind::kDense && queries > 1;
  state_->is_grouped = form == SdpaForm::kGrouped;
  if (inputs.rule.kind == KeyRuleKind::kWindow) {
    state_->mask = mask_of(inputs);
  }
  if (form == SdpaForm::kExpanded || form == SdpaForm::kRows) {
    const bool is_rows = form == SdpaForm::kRows;
    const std::int64_t shared = heads / groups;
    state_->query = is_rows ? state_->query.view({groups, 1, shared, width})
                            : state_->query.view({groups, shared, queries, width});
    for (at::Tensor* tensor : {&state_->key, &state_->value}) {
      *tensor = tensor->view({groups, 1, keys, width});
      *tensor = is_rows ? *tensor : tensor->expand({groups, shared, keys, width});
    }
  }
}

Sdpa::~Sdpa() = default;
Sdpa::Sdpa(Sdpa&&) noexcept = default;
Sdpa& Sdpa::operator=(Sdpa&&) noexcept = default;

void Sdpa::forward() {
  const at::NoGradGuard no_grad;
  state_->out =
      at::scaled_dot_product_attention(state_->query, state_->key, state_->value, state_->mask, 0.0,
                                       state_->is_causal, state_->scale, state_->is_grouped);
}

std::vector<double> Sdpa::out() const { return copied(state_->out); }

void Sdpa::prepare_backward(const kernels::ConstTensorView& grad_out) {
  const at::NoGradGuard no_grad;
  state_->grad_out = tensor_of(grad_out);
  state_->of_flash = at::_scaled_dot_product_flash_attention_for_cpu(
      state_->query, state_->key, state_->value, 0.0, state_->is_causal, state_->mask,
      state_->scale);
}

void Sdpa::backward() {
  const at::NoGradGuard no_grad;
  state_->gradients = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      state_->grad_out, state_->query, state_->key, state_->value, std::get<0>(state_->of_flash),
      std::get<1>(state_->of_flash), 0.0, state_->is_causal, state_->mask, state_->scale);
}

std::vector<std::vector<double>> Sdpa::gradients() const {
  const auto& [query, key, value] = state_->gradients;
  return {copied(query), copied(key), copied(value)};
}

std::string Sdpa::backend() const {
  const auto choice = static_cast<at::SDPBackend>(
      at::_fused_sdp_choice(state_->query, state_->key, state_->value, state_->mask, 0.0,
                            state_->is_causal, state_->scale, state_->is_grouped));
  return choice == at::SDPBackend::flash_attention ? "flash for CPU"
         : choice == at::SDPBackend::math          ? "math"
                                                   : "another";
}

void set_sdpa_threads(int num_threads) { at::set_num_threads(num_threads); }

std::string sdpa_capability() { return at::get_cpu_capability(); }

}  // namespace paperlab::bench
