#pragma once
/// \file
/// The tensors of a model by name and by role, and the layers that read them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/linear.h"
#include "paperlab/nn/norm.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

struct NamedParameter {
  ParameterSpec spec;
  std::shared_ptr<at::Tensor> value;
};

/// Parameters whose tensors may be exchanged: layers hold the places, not the tensors.
class PAPERLAB_API ParameterSet {
 public:
  /// \param owner   in whose name errors are.
  /// \param values  one for each of `specs`, in that order, of its shape; one dtype (float32,
  ///                float64, bfloat16, float16) and device.
  /// \throws ShapeError, DTypeError, ValueError  if they are not as above.
  ParameterSet(std::string owner, std::vector<ParameterSpec> specs, std::vector<at::Tensor> values);

  const std::vector<NamedParameter>& list() const { return list_; }

  /// The dtype and device of the first.
  const at::Tensor& first() const { return *list_.front().value; }

  /// The parameter of a role; null: the model has none.
  const NamedParameter* entry(Role role, std::int64_t layer = -1, bool is_bias = false) const;

  /// \throws ValueError  if there is no parameter of that name.
  const NamedParameter& named(const std::string& name) const;

  /// The place of a role; null: the model has none.
  std::shared_ptr<at::Tensor> find(Role role, std::int64_t layer = -1, bool is_bias = false) const;

  /// Puts another tensor in a parameter's place; its shape must be the same.
  /// \throws ValueError, ShapeError, DTypeError  if there is no such parameter, or it is another's.
  void set(const std::string& name, const at::Tensor& value);

  /// Moves the tensors there, those that are elsewhere; they require gradients as before.
  void to(const at::Device& device);

  /// Refuses, in the name of `function`, what a user may have made of the tensors in place: other
  /// shapes, dtypes or devices, no data, gradients of forward mode.
  void check(const char* function) const;

  /// The linear layer of a role, named as its weight; without a layer if the model has none.
  LinearSlot linear(Role role, std::int64_t layer = -1) const;

  /// The LayerNorm of a role; null if the model has none.
  std::shared_ptr<const NormLayer> layer_norm(Role role, std::int64_t layer, double eps) const;

 private:
  std::string owner_;
  std::vector<NamedParameter> list_;
};

}  // namespace paperlab::nn
