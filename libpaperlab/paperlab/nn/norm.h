#pragma once
/// \file
/// Normalization layers of a decoder, with the residual's addition before them.

#include <ATen/core/Tensor.h>

#include <memory>

#include "paperlab/core/export.h"

namespace paperlab::nn {

/// Normalizes the last dimension. Implementations are safe to call from several threads.
class PAPERLAB_API NormLayer {
 public:
  struct Sum {
    at::Tensor y;    ///< norm of the sum
    at::Tensor sum;  ///< x + delta
  };

  virtual ~NormLayer() = default;

  /// \param x  [..., E].
  /// \return   shape and dtype of x.
  virtual at::Tensor forward(const at::Tensor& x) const = 0;

  /// The norm of x + delta, and x + delta.
  virtual Sum add(const at::Tensor& x, const at::Tensor& delta) const;
};

/// x / sqrt(mean(x^2) + eps) * weight, statistics in float32 (float64 for float64); the addition
/// is part of the same pass. With an offset 1 + weight stands for weight (Gemma), and the product
/// is rounded once.
class PAPERLAB_API RmsNorm final : public NormLayer {
 public:
  RmsNorm(std::shared_ptr<const at::Tensor> weight, double eps, bool has_offset = false)
      : weight_(std::move(weight)), eps_(eps), has_offset_(has_offset) {}

  at::Tensor forward(const at::Tensor& x) const override;
  Sum add(const at::Tensor& x, const at::Tensor& delta) const override;

 private:
  at::Tensor multiplier() const;

  std::shared_ptr<const at::Tensor> weight_;
  double eps_;
  bool has_offset_;
};

/// x: a state that is read as it is.
class PAPERLAB_API NoNorm final : public NormLayer {
 public:
  at::Tensor forward(const at::Tensor& x) const override { return x; }
  Sum add(const at::Tensor& x, const at::Tensor& delta) const override;
};

/// Normalizes the state itself: the sum is `inner` of it too. Who reads the state after a sublayer
/// has that sublayer's norm then.
class PAPERLAB_API NormAfter final : public NormLayer {
 public:
  explicit NormAfter(std::shared_ptr<const NormLayer> inner) : inner_(std::move(inner)) {}

  at::Tensor forward(const at::Tensor& x) const override { return inner_->forward(x); }
  Sum add(const at::Tensor& x, const at::Tensor& delta) const override;

 private:
  std::shared_ptr<const NormLayer> inner_;
};

/// (x - mean) / sqrt(variance + eps) * weight + bias; without either where it is null.
class PAPERLAB_API LayerNorm final : public NormLayer {
 public:
  LayerNorm(std::shared_ptr<const at::Tensor> weight, std::shared_ptr<const at::Tensor> bias,
            double eps)
      : weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {}

  at::Tensor forward(const at::Tensor& x) const override;

 private:
  std::shared_ptr<const at::Tensor> weight_;
  std::shared_ptr<const at::Tensor> bias_;
  double eps_;
};

}  // namespace paperlab::nn
