#pragma once
// LibTorch's headers that registering an operator takes, parsed once a build (Targets.cmake). A
// file includes what it needs all the same: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without
// this.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
