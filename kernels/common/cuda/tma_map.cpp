#include "kernels/common/cuda/tma_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "kernels/common/cuda/check.cuh"

namespace paperlab::kernels {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  constexpr char kName[] = "cuTensorMapEncodeTiled";
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  PAPERLAB_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion(kName, &function, 12000, cudaEnableDefault, &found));
#else
  PAPERLAB_CUDA_CHECK(cudaGetDriverEntryPoint(kName, &function, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw CudaError("tensor_map: the driver must have cuTensorMapEncodeTiled (CUDA 12), got none");
  }
  return reinterpret_cast<Encode>(function);
}

// The driver's results have the numbers of the runtime's.
std::string name_of(CUresult status) {
  const auto error = static_cast<cudaError_t>(status);
  return std::string(cudaGetErrorName(error)) + " (" + std::to_string(static_cast<int>(status)) +
         ": " + cudaGetErrorString(error) + ")";
}

}  // namespace

TensorMap tensor_map(const BoxTensor& tensor) {
  static const Encode encode = find_encode();
  const cuuint32_t box[4] = {kBoxColumns, tensor.box_rows, 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const cuuint64_t size[4] = {tensor.size[0], tensor.size[1], tensor.size[2], tensor.size[3]};
  const cuuint64_t stride[3] = {tensor.stride[0], tensor.stride[1], tensor.stride[2]};
  CUtensorMap map;
  const CUresult status =
      encode(&map,
             tensor.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             4, const_cast<void*>(tensor.data), size, stride, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw CudaError("tensor_map: cuTensorMapEncodeTiled must take " + text_of(tensor) + ", got " +
                    name_of(status));
  }
  return bits_as<TensorMap>(map);
}

}  // namespace paperlab::kernels
