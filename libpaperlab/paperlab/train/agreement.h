#pragma once
/// \file
/// What the processes of a run tell each other besides gradients: numbers, texts, and whether one
/// of them failed. Alone, a process tells itself.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/train/processes.h"

namespace paperlab::train {

class PAPERLAB_API Agreement {
 public:
  /// \param processes  null: one.
  /// \param device     where they can exchange tensors.
  Agreement(std::shared_ptr<Processes> processes, const at::Device& device);

  std::int64_t rank() const { return rank_; }
  std::int64_t size() const { return size_; }
  bool is_alone() const { return size_ == 1; }
  bool is_first() const { return rank_ == 0; }  ///< The one that reads and writes files.
  Processes& processes() const { return *processes_; }
  const at::Device& device() const { return device_; }

  /// The sums over all processes, the same bits in each.
  /// \throws LostProcess  as all that follow.
  std::vector<double> sum(const std::vector<double>& values) const;

  /// A text of each process, by rank.
  std::vector<std::string> texts(const std::string& own) const;

  /// The first process's text.
  std::string text_of_first(const std::string& own) const;

  /// Does the work in each process and returns the largest of what they return. If it throws
  /// anything but LostProcess in one of them, all throw, as fail().
  double together(const std::function<double()>& work) const;

  /// All processes throw: this library's errors as they were thrown by the first that has one, in
  /// each process; any other exception (of a callback) in its own, and IoError with its first line
  /// elsewhere.
  /// \param own  null where nothing failed.
  [[noreturn]] void fail(const std::exception_ptr& own) const;

 private:
  std::shared_ptr<Processes> processes_;
  at::Device device_;
  std::int64_t rank_;
  std::int64_t size_;
};

}  // namespace paperlab::train
