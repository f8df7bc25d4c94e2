#pragma once
/// \file
/// Initial values of a decoder's parameters.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

/// Standard deviations of the matrices, E = d_model, L = num_layers. Biases are 0, norms 1
/// (0 where they are added to 1).
enum class Init : std::uint8_t {
  kNormal,   ///< config.init_std everywhere (Llama's released configuration).
  kGptNeoX,  ///< sqrt(2 / (5 E)); the attention's and the FFN's output 2 / (L sqrt(E)).
             ///< Source: Black et al., arXiv:2204.06745, Sec. 3.
  kGpt2,     ///< config.init_std; the attention's and the FFN's output init_std / sqrt(2 L).
             ///< Source: Radford et al., 2019, "Language models are unsupervised multitask
             ///< learners", Sec. 2.3.
  kXavier,   ///< sqrt(2 / (in + out)); Source: Glorot, Bengio, AISTATS 2010, Eq. (12).
};

/// Returns normal values for each of parameter_specs(config, family), in that order: a function of
/// the seed, the parameter's place and the element's, for any number of threads.
/// \throws DTypeError  unless dtype is float32, float64 or bfloat16.
PAPERLAB_API std::vector<at::Tensor> initial_values(const DecoderConfig& config, Family family,
                                                    Init init, std::uint64_t seed,
                                                    at::ScalarType dtype);

/// Returns the standard deviation of a matrix of the decoder.
PAPERLAB_API double standard_deviation(const DecoderConfig& config, Init init,
                                       const ParameterSpec& spec);

/// Returns normal values of mean 0 on the CPU: element i of a contiguous tensor is a function of
/// (seed, stream, i), computed in float64 and rounded once.
PAPERLAB_API at::Tensor normal_values(const std::vector<std::int64_t>& shape, double std,
                                      std::uint64_t seed, std::uint64_t stream,
                                      at::ScalarType dtype);

/// \throws DTypeError  "FUNCTION: ..." unless dtype is float32, float64 or bfloat16.
PAPERLAB_API void check_initial_dtype(const char* function, at::ScalarType dtype);

}  // namespace paperlab::nn
