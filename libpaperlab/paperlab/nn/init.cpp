#include "paperlab/nn/init.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::nn {
namespace {

bool is_norm(Role role) {
  return role == Role::kAttentionNorm || role == Role::kFfnNorm || role == Role::kFinalNorm ||
         role == Role::kQueryNorm || role == Role::kKeyNorm || role == Role::kPostAttentionNorm ||
         role == Role::kPostFfnNorm;
}

}  // namespace

double standard_deviation(const DecoderConfig& config, Init init, const ParameterSpec& spec) {
  const auto width = static_cast<double>(config.d_model);
  const auto depth = static_cast<double>(config.num_layers);
  const bool is_output = spec.role == Role::kOut || spec.role == Role::kDown;
  switch (init) {
    case Init::kGptNeoX:
      return is_output ? 2.0 / (depth * std::sqrt(width)) : std::sqrt(2.0 / (5.0 * width));
    case Init::kGpt2:
      return is_output ? config.init_std / std::sqrt(2.0 * depth) : config.init_std;
    case Init::kXavier:
      return std::sqrt(2.0 / static_cast<double>(spec.shape[0] + spec.shape[1]));
    case Init::kNormal:
      break;
  }
  return config.init_std;
}

at::Tensor normal_values(const std::vector<std::int64_t>& shape, double std, std::uint64_t seed,
                         std::uint64_t stream, at::ScalarType dtype) {
  at::Tensor values = at::empty(shape, at::kDouble);
  auto* out = values.mutable_data_ptr<double>();
  constexpr std::int64_t kPiece = 4096;
  parallel_for(ops::torch_executor(), (values.numel() + kPiece - 1) / kPiece,
               [&](std::int64_t piece, int) {
                 const std::int64_t end = std::min(values.numel(), (piece + 1) * kPiece);
                 for (std::int64_t i = piece * kPiece; i < end; ++i) {
                   out[i] = std * philox_normal(seed, stream, static_cast<std::uint64_t>(i));
                 }
               });
  return values.to(dtype);
}

void check_initial_dtype(const char* function, at::ScalarType dtype) {
  require<DTypeError>(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                      function, "dtype must be float32, float64 or bfloat16", c10::toString(dtype));
}

std::vector<at::Tensor> initial_values(const DecoderConfig& config, Family family, Init init,
                                       std::uint64_t seed, at::ScalarType dtype) {
  check_initial_dtype("nn::initial_values", dtype);
  std::vector<at::Tensor> values;
  for (const ParameterSpec& spec : parameter_specs(config, family)) {
    if (spec.is_bias) {
      values.push_back(at::zeros(spec.shape, dtype));
    } else if (is_norm(spec.role)) {
      values.push_back(config.has_norm_offset ? at::zeros(spec.shape, dtype)
                                              : at::ones(spec.shape, dtype));
    } else {
      values.push_back(normal_values(spec.shape, standard_deviation(config, init, spec), seed,
                                     values.size(), dtype));
    }
  }
  return values;
}

}  // namespace paperlab::nn
