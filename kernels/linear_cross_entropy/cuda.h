#pragma once
// linear_cross_entropy on a GPU: the same problems with pointers of the device, chunk by chunk,
// with products that are given. No CUDA header, so that every build can name it.
//
// loss and lse are float32 (float64 for float64). bfloat16 and float16 multiply as they are and
// accumulate in float32; the gradient of a logit is rounded to that dtype before the products, dx
// and dweight once more at the end. Targets lie on the device, where nobody can refuse them: a row
// whose target is outside of the vocabulary and not ignore_index has a loss and gradients of NaN.
// The same bits from run to run if the products have them.

#include "kernels/common/cuda/gemm_function.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace paperlab::kernels {

// Writes loss and lse, asynchronous on the context's stream. Any of the weight's strides may be 1.
// Throws as check_linear_cross_entropy_cuda.
void linear_cross_entropy_cuda(const LinearCrossEntropy& problem,
                               const LinearCrossEntropyResult& result, const GemmCuda& products,
                               void* workspace, const Context& context);

// Writes the gradients that are wanted; rows that do not count have none.
void linear_cross_entropy_backward_cuda(const LinearCrossEntropy& problem,
                                        const LinearCrossEntropyGradients& gradients,
                                        const GemmCuda& products, void* workspace,
                                        const Context& context);

// --- without a GPU (cuda_driver.cpp) ------------------------------------------------------------

// Bytes of workspace, aligned to 256 bytes: functions of shapes, of the dtype and of which
// gradients are wanted.
std::int64_t linear_cross_entropy_cuda_workspace(const LinearCrossEntropy& problem,
                                                 const GemmCuda& products);
std::int64_t linear_cross_entropy_backward_cuda_workspace(
    const LinearCrossEntropy& problem, const LinearCrossEntropyGradients& gradients,
    const GemmCuda& products);

// Throws ShapeError for negative sizes or V < 1, ValueError for strides of which none is 1.
void check_linear_cross_entropy_cuda(const LinearCrossEntropy& problem);

}  // namespace paperlab::kernels
