#pragma once
/// \file
/// Linear layers of a decoder, the place where a paper puts its own, and hooks that see inputs.

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab::nn {

/// y = f(x), linear in a dense layer. Implementations are safe to call from several threads.
class PAPERLAB_API Linear {
 public:
  virtual ~Linear() = default;

  /// \param x  [..., in].
  /// \return   [..., out], dtype of x.
  virtual at::Tensor forward(const at::Tensor& x) const = 0;
};

/// x W^T + b of tensors that somebody else may exchange (Decoder::set_parameter).
class PAPERLAB_API DenseLinear final : public Linear {
 public:
  /// \param weight  [out, in], or [in, out] if it is transposed.
  /// \param bias    [out], or null.
  DenseLinear(std::shared_ptr<const at::Tensor> weight, std::shared_ptr<const at::Tensor> bias,
              bool is_transposed = false)
      : weight_(std::move(weight)), bias_(std::move(bias)), is_transposed_(is_transposed) {}

  at::Tensor forward(const at::Tensor& x) const override;

  /// [out, in], a view if it is transposed.
  at::Tensor weight() const { return is_transposed_ ? weight_->t() : *weight_; }
  at::Tensor bias() const { return bias_ == nullptr ? at::Tensor() : *bias_; }

 private:
  std::shared_ptr<const at::Tensor> weight_;
  std::shared_ptr<const at::Tensor> bias_;
  bool is_transposed_;
};

/// While it lives, operators heed the gradient mode again: a decoder that records no gradients
/// leaves that step out, and hooks and layers of the user's may want some of their own.
class PAPERLAB_API UserCode {
 public:
  UserCode();

 private:
  c10::impl::ForceDispatchKeyGuard guard_;
};

/// Gets the name of a linear layer (`model.layers.0.mlp.up_proj`) and its input [..., in] before
/// the layer is applied.
using LinearHook = std::function<void(const std::string& name, const at::Tensor& x)>;

/// The hooks of a decoder by number; those with smaller numbers are called first.
using LinearHooks = std::map<std::int64_t, LinearHook>;

/// A linear layer's place in a decoder: its layer may be exchanged, its name stays.
struct PAPERLAB_API LinearSlot {
  std::string name;
  std::shared_ptr<const Linear> layer;

  at::Tensor operator()(const at::Tensor& x, const LinearHooks& hooks) const;
};

}  // namespace paperlab::nn
