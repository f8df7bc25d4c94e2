#pragma once
// Starts the blocks of plan.h on a stream. T is float, BFloat16, Float16 or double, Number float or
// double; each function is in the file that is named after it.

#include "kernels/common/cuda/context.h"
#include "kernels/depth_aggregate/plan.h"

namespace paperlab::kernels::depth {

struct CudaLaunch {
  Context context;

  template <class T>
  void sum(const SumTask& task, std::int64_t num_blocks) const;  // cuda.cu
  template <class T>
  void gradient(const GradientTask& task, std::int64_t num_blocks) const;  // cuda_backward.cu
  template <class T>
  void norm(const NormTask& task, std::int64_t num_blocks) const;  // cuda_generator.cu
  template <class T>
  void product(const ProductTask& task, std::int64_t num_blocks) const;
  template <class Number>
  void dots(const DotTask& task, std::int64_t num_blocks) const;
  template <class Number>
  void columns(const ColumnTask& task, std::int64_t num_blocks) const;
  void zero(void* data, std::int64_t num_bytes) const;
};

}  // namespace paperlab::kernels::depth
