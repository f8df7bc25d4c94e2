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
    # Its types alone: the library is loaded when a product needs it.
    find_path(PAPERLAB_CUBLASLT_INCLUDE cublasLt.h PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
  endif()
  if(CMAKE_CUDA_COMPILER AND PAPERLAB_CUBLASLT_INCLUDE)
    set(PAPERLAB_HAS_CUDA 1)
  elseif(PAPERLAB_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "PAPERLAB_WITH_CUDA=ON needs a CUDA toolkit with nvcc and cublasLt.h; none was found")
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
    --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off --fmad=false
    -Xptxas=-v)
  if(NOT PAPERLAB_WERROR)
    string(REGEX REPLACE "--Werror=all-warnings;|-Werror," "" PAPERLAB_CUDA_FLAGS
      "${PAPERLAB_CUDA_FLAGS}")
  endif()
  # ptxas prints what kernels take and its performance warnings (C75nn) as information: the launcher
  # keeps the one in tables and makes errors of the others, of spills and of what is over budget.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/scripts/nvcc_strict.sh ${PAPERLAB_CCACHE})
  # The tables are those of a compiler: scripts/kernel_resources.py compares equal ones only.
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" nvcc_release ${CMAKE_CUDA_COMPILER_VERSION})
  file(CONFIGURE OUTPUT nvcc_release CONTENT "${nvcc_release}\n")
else()
  message(STATUS "CUDA kernels: off (${PAPERLAB_WITH_CUDA}; no nvcc with cublasLt.h in use)")
endif()

target_compile_definitions(paperlab_flags INTERFACE PAPERLAB_HAS_CUDA=${PAPERLAB_HAS_CUDA})
