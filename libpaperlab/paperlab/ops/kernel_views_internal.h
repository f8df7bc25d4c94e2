#pragma once
// Tensors of four dimensions as kernels see them, and kernels' errors as LibTorch's.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/kernel_dtype_internal.h"

namespace paperlab::ops::views {

// Kernels read and write rows; only their elements must lie side by side.
inline at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return !x.defined() || x.size(3) <= 1 || x.stride(3) == 1 ? x : x.contiguous();
}

// Whether a matrix has one stride of 1 and lines that do not lie on each other, as those of an
// expanded one do.
inline bool has_lines_apart(const at::Tensor& x) {
  return (x.stride(1) == 1 && x.stride(0) >= x.size(1)) ||
         (x.stride(0) == 1 && x.stride(1) >= x.size(0));
}

// The view of an absent tensor has no address, so that of an empty one needs some. An empty tensor
// is contiguous whatever its strides.
template <class Void>
kernels::BasicTensorView<Void> view_of(const at::Tensor& x, Void* data) {
  static std::int64_t nothing = 0;
  kernels::BasicTensorView<Void> view;
  if (x.defined()) {
    view.data = x.numel() == 0 ? &nothing : data;
    view.dtype = kernel_dtype(x);
    for (int i = 0; i < 4; ++i) {
      view.size[i] = x.size(i);
      view.stride[i] = x.stride(i);
    }
    view.stride[3] = x.numel() == 0 ? 1 : view.stride[3];
  }
  return view;
}

inline kernels::ConstTensorView const_view(const at::Tensor& x) {
  return view_of<const void>(x, x.defined() ? x.const_data_ptr() : nullptr);
}

inline kernels::TensorView mutable_view(const at::Tensor& x) {
  return view_of<void>(x, x.defined() ? x.mutable_data_ptr() : nullptr);
}

// A kernel's message with the operator's name in front, as an error that is a ValueError or
// TypeError in Python; errors of a GPU stay what they are.
template <class F>
void with_errors_of(const char* function, F body) {
  const auto message = [function](const Error& error) {
    const std::string text = error.what();
    const std::size_t colon = text.find(": ");
    return function + (colon == std::string::npos ? ": " + text : text.substr(colon));
  };
  try {
    body();
  } catch (const CudaError&) {
    throw;
  } catch (const DTypeError& error) {
    TORCH_CHECK_TYPE(false, message(error));
  } catch (const Error& error) {
    TORCH_CHECK_VALUE(false, message(error));
  }
}

}  // namespace paperlab::ops::views
