#pragma once
/// \file
/// Gradients are added up over all processes in buckets, while backward computes the next ones.
/// Source: Li et al., arXiv:2006.15704, section 3.2.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/train/processes.h"

namespace paperlab::train {

/// Indices of parameters by bucket, from the last parameter to the first, which is about the order
/// in which backward makes their gradients. A bucket is closed before it would pass `capacity`; a
/// larger parameter has one alone.
PAPERLAB_API std::vector<std::vector<std::int64_t>> plan_buckets(
    std::span<const std::int64_t> sizes, std::int64_t capacity);

/// The gradients of parameters of one dtype and device. While this lives, the parameters have a
/// hook that runs after those that they had.
///
///     buckets.begin();      // a step
///     buckets.arm();        // before its last backward()
///     loss.backward();      // takes gradients out of the parameters as they come
///     buckets.finish();     // also where backward() threw: the others wait for the same sums
///     buckets.assign(...);  // the sums are the parameters' gradients
class PAPERLAB_API GradientBuckets {
 public:
  /// \param bytes  of a bucket.
  GradientBuckets(std::vector<at::Tensor> parameters, std::shared_ptr<Processes> processes,
                  std::int64_t bytes);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// No gradient is found and no sum has begun.
  void begin();

  /// From here on a parameter's gradient is final once backward() has added to it.
  void arm() { is_armed_ = true; }

  /// Begins the sums that have not begun, in the order of the buckets, and waits for all.
  /// \throws LostProcess  if a process is lost.
  void finish();

  /// One a parameter: whether finish() found a gradient. Where no process has one there is none.
  const std::vector<bool>& found() const { return found_; }

  /// Makes the sums the gradients of the parameters for which `counts` is above 0. They share
  /// memory with the buckets, whose next sums overwrite them.
  void assign(std::span<const double> counts);

 private:
  struct Hook;
  struct Bucket {
    std::vector<std::int64_t> members;
    at::Tensor sums;  // [n], in float32 for half types
    std::int64_t num_missing = 0;
    Wait wait{};
  };
  struct Place {
    std::size_t bucket = 0;
    std::int64_t offset = 0;
  };

  void take(std::int64_t index);
  void start_full();
  void start_next();
  at::Tensor place_of(std::int64_t index) const;

  std::vector<at::Tensor> parameters_;
  std::shared_ptr<Processes> processes_;
  std::vector<Bucket> buckets_{};
  std::vector<Place> places_;
  std::vector<bool> found_;
  std::vector<Hook*> hooks_{};  // owned by autograd
  std::size_t num_started_ = 0;
  bool is_armed_ = false;
};

}  // namespace paperlab::train
