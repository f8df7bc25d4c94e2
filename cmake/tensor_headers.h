#pragma once
// LibTorch's headers that most of its users include, parsed once a build (Targets.cmake). A file
// includes what it needs all the same: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without this.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
