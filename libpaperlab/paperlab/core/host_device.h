#pragma once
/// \file
/// Marks arithmetic that CPU tests and CUDA kernels share.

#ifdef __CUDACC__
#define PAPERLAB_HD __host__ __device__
#else
#define PAPERLAB_HD
#endif
