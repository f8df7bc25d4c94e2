#pragma once
// What operators do under torch.autocast, and what none of them does: forward gradients. Rules of
// autocast run above autograd, so that gradients come back in the dtypes of what was given.
//
// Products (linear, linear_cross_entropy, attention, group_pool) are made in autocast's dtype, as
// LibTorch's are; float64 stays. The others take their tensors in the widest dtype given.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/ScalarType.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>

namespace paperlab::ops::autocast {

// While it lives, operators of any device do not look at autocast: within an implementation, which
// chose its dtypes. A backward pass may run where autocast is on.
class Off {
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

// While it lives, operators do not look at autocast.
template <c10::DeviceType kDevice>
class Guard {
  c10::impl::ExcludeDispatchKeyGuard guard_{
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice)};
};

// x, or none, in autocast's dtype: casts of parameters are kept for the region, as LibTorch's.
template <c10::DeviceType kDevice>
at::Tensor lowered(const at::Tensor& x) {
  return x.defined()
             ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), x, kDevice)
             : x;
}

template <c10::DeviceType kDevice>
std::optional<at::Tensor> lowered(const std::optional<at::Tensor>& x) {
  return x.has_value() ? std::optional(lowered<kDevice>(*x)) : std::nullopt;
}

inline at::Tensor cast(const at::Tensor& x, at::ScalarType dtype) {
  return x.defined() && x.is_floating_point() ? x.to(dtype) : x;
}

// Casts the floating tensors to the widest dtype among them; none may be nullptr, and those that
// are not defined stay so.
inline void widen(std::initializer_list<at::Tensor*> tensors) {
  at::ScalarType widest = at::ScalarType::Undefined;
  for (const at::Tensor* x : tensors) {
    if (x->defined() && x->is_floating_point()) {
      widest = widest == at::ScalarType::Undefined ? x->scalar_type()
                                                   : c10::promoteTypes(widest, x->scalar_type());
    }
  }
  for (at::Tensor* x : tensors) {
    *x = cast(*x, widest);
  }
}

}  // namespace paperlab::ops::autocast

namespace paperlab::ops {

// Forward-mode derivatives of our operators are not defined; without this they would be zero
// wherever no backward pass is recorded.
inline void refuse_forward_gradient(const char* function, const at::Tensor& x) {
  TORCH_CHECK_NOT_IMPLEMENTED(!x.defined() || !x._fw_grad(/*level=*/0).defined(), function,
                              ": forward-mode derivatives (torch.func.jvp) are not supported");
}

inline void refuse_forward_gradient(const char* function, const std::optional<at::Tensor>& x) {
  if (x.has_value()) {
    refuse_forward_gradient(function, *x);
  }
}

template <class... Tensors>
void refuse_forward_gradients(const char* function, const Tensors&... tensors) {
  (refuse_forward_gradient(function, tensors), ...);
}

}  // namespace paperlab::ops
