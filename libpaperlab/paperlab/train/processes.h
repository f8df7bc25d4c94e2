#pragma once
/// \file
/// The processes that train one model together: sums and copies of tensors between them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/core/export.h"

namespace paperlab::train {

/// Another process has ended or does not answer.
class PAPERLAB_API LostProcess : public IoError {
 public:
  explicit LostProcess(const std::string& message) : IoError(message) {}
};

/// Waits until the tensor that was given to Processes holds the result.
/// \throws LostProcess  if it never will.
using Wait = std::function<void()>;

/// The processes of a run. All call the same functions in the same order, with tensors of the same
/// shapes and dtypes: contiguous, without autograd, and left alone until they were waited for.
class PAPERLAB_API Processes {
 public:
  virtual ~Processes() = default;

  virtual std::int64_t rank() const = 0;  ///< from 0
  virtual std::int64_t size() const = 0;

  /// Begins to put the sum over all processes into each one's tensor: the same bits in all.
  /// \throws LostProcess  if it cannot.
  virtual Wait start_sum(const at::Tensor& x) = 0;

  /// Begins to copy the tensor of one process into the others'.
  /// \throws LostProcess  if it cannot.
  virtual Wait start_copy(const at::Tensor& x, std::int64_t from) = 0;
};

/// The process group of torch.distributed that has this name.
/// \throws ValueError  if there is none.
PAPERLAB_API std::shared_ptr<Processes> processes_of_group(const std::string& name);

}  // namespace paperlab::train
