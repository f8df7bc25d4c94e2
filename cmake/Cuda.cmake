# CUDA is an option that defaults to what is found. Sets PAPERLAB_HAS_CUDA (0 or 1).

set(PAPERLAB_HAS_CUDA 0)
if(NOT PAPERLAB_WITH_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # the -gencode flags below are the only ones
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(PAPERLAB_HAS_CUDA 1)
  elseif(PAPERLAB_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PAPERLAB_WITH_CUDA=ON needs a CUDA compiler (nvcc); none was found")
  endif()
endif()

if(PAPERLAB_HAS_CUDA)
  message(STATUS "CUDA kernels: on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, sm_80 and sm_90a)")
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows no C++20 for nvcc
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
  set(PAPERLAB_CUDA_FLAGS
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
    --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off --fmad=false)
  # ptxas prints its performance warnings (C75nn) as information: the launcher makes them errors.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/scripts/nvcc_strict.sh ${PAPERLAB_CCACHE})
else()
  message(STATUS "CUDA kernels: off (${PAPERLAB_WITH_CUDA}; no nvcc in use)")
endif()

target_compile_definitions(paperlab_flags INTERFACE PAPERLAB_HAS_CUDA=${PAPERLAB_HAS_CUDA})
