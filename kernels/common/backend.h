#pragma once
// What this build holds. A branch under `if constexpr (kHasCuda)` needs no definition without CUDA.

namespace paperlab::kernels {

inline constexpr bool kHasCuda = PAPERLAB_HAS_CUDA != 0;  // cmake/Cuda.cmake

}  // namespace paperlab::kernels
