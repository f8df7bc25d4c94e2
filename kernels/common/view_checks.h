#pragma once
// Checks of a problem's views that kernels share. Messages are made only for what fails: a decode
// step takes some microseconds.

#include <cstdint>
#include <string>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {

struct ViewSizes {
  std::int64_t size[4];
};

inline std::string sizes_text(const std::int64_t (&size)[4]) {
  std::string text = "[";
  for (int i = 0; i < 4; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(size[i]);
  }
  return text + "]";
}

// Throws E "<function>: <required>, got <got>".
template <class E>
[[noreturn]] void refuse(const char* function, const std::string& required,
                         const std::string& got) {
  require<E>(false, function, required, got);
  __builtin_unreachable();
}

// What all views of a function's arguments have in common.
struct ViewCheck {
  const char* function;
  const char* first;  // the argument whose dtype the others must have
  DType dtype;        // of it

  // Throws ShapeError unless the view has these sizes and is contiguous in its last dimension,
  // DTypeError unless it is of the dtype.
  template <class Void>
  void operator()(const BasicTensorView<Void>& view, const char* name,
                  const ViewSizes& wanted) const {
    for (int i = 0; i < 4; ++i) {
      if (view.size[i] != wanted.size[i]) {
        refuse<ShapeError>(function, std::string(name) + " must be " + sizes_text(wanted.size),
                           sizes_text(view.size));
      }
    }
    if (view.dtype != dtype) {
      refuse<DTypeError>(function, std::string(name) + " must be of the dtype of " + first,
                         "another");
    }
    if (view.stride[3] != 1 && view.size[3] > 1) {
      refuse<ShapeError>(function, std::string(name) + " must be contiguous in its last dimension",
                         "stride " + std::to_string(view.stride[3]));
    }
  }
};

// Throws ShapeError unless `heads` of query are a multiple of the keys'.
inline void check_head_groups(const char* function, std::int64_t heads, std::int64_t key_heads) {
  if (key_heads == 0 ? heads != 0 : heads % key_heads != 0) {
    refuse<ShapeError>(
        function, "query's heads must be a multiple of key's (" + std::to_string(key_heads) + ")",
        std::to_string(heads));
  }
}

}  // namespace paperlab::kernels
