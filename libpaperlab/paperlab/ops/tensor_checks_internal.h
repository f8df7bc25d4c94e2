#pragma once
// Checks of one tensor that operators share. They look at no data, so that they hold for tensors
// without any.

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKey.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <vector>

namespace paperlab::ops::checks {

using Shape = std::vector<c10::SymInt>;

// Whether a kernel or a check of values may read x: not a meta tensor, nor one of a class written
// in Python, such as a fake tensor, which operators alone understand.
inline bool has_memory(const at::Tensor& x) {
  return !x.is_meta() && !x.key_set().has(c10::DispatchKey::Python);
}

// Nothing else may be asked of a tensor before this.
inline void check_is_plain(const char* function, const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.defined(), function, ": ", name, " must be a tensor, got none");
  TORCH_CHECK_VALUE(!x.is_nested(), function, ": ", name, " must be strided, got a nested tensor");
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", x.layout());
}

inline void check_has_shape(const char* function, const char* name, const at::Tensor& x,
                            const Shape& shape) {
  TORCH_CHECK_VALUE(x.sym_sizes() == c10::SymIntArrayRef(shape), function, ": ", name, " must be ",
                    c10::SymIntArrayRef(shape), ", got ", x.sym_sizes());
}

// `like` is the argument called `like_name`.
inline void check_is_like(const char* function, const char* name, const at::Tensor& x,
                          const at::Tensor& like, at::ScalarType dtype,
                          const char* like_name = "query") {
  check_is_plain(function, name, x);
  TORCH_CHECK_TYPE(x.scalar_type() == dtype, function, ": ", name, " must be of dtype ", dtype,
                   ", got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == like.device(), function, ": ", name, " must be on the device of ",
                    like_name, " (", like.device(), "), got ", x.device());
}

}  // namespace paperlab::ops::checks
