#include "paperlab/mudd/initial_values.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/core/rng.h"
#include "paperlab/mudd/initial_values_internal.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/layout_internal.h"
#include "paperlab/nn/init.h"

namespace paperlab::mudd {
namespace {

constexpr char kFunction[] = "MuddFormer";
constexpr double kPostNorm = 1e-3;
constexpr double kScale = 0.01;

at::Tensor newest(const std::vector<std::int64_t>& shape) {
  at::Tensor values = at::zeros(shape, at::kDouble);
  values.select(1, shape[1] - 1).fill_(1.0);
  return values;
}

at::Tensor alpha(std::int64_t num_streams, std::int64_t index) {
  at::Tensor values = at::zeros({num_streams, num_streams + 1}, at::kDouble);
  values.narrow(1, 1, num_streams).copy_(at::eye(num_streams, at::kDouble));
  values.select(1, 0).select(0, index % num_streams).fill_(1.0);
  return values;
}

at::Tensor router(const nn::ParameterSpec& spec, std::uint64_t seed) {
  const std::int64_t heads = spec.shape[0];
  const std::int64_t columns = spec.shape[1];
  at::Tensor values = at::empty(spec.shape, at::kDouble);
  const double bound = std::sqrt(3.0 / static_cast<double>(columns));
  auto* out = values.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const double u = philox_uniform(seed, stream_of(spec), static_cast<std::uint64_t>(i));
    out[i] = bound * (2.0 * u - 1.0);
  }
  values.narrow(1, columns - heads, heads).copy_(at::eye(heads, at::kDouble));
  return values;
}

class Initial {
 public:
  Initial(const MuddConfig& config, std::uint64_t seed, at::ScalarType dtype,
          const InitOptions& options)
      : config_(config),
        decoder_(decoder_config(config)),
        seed_(seed),
        dtype_(dtype),
        options_(options) {}

  at::Tensor value(const Entry& entry) const {
    const std::vector<std::int64_t>& shape = entry.spec.shape;
    switch (entry.start) {
      case Start::kMatrix:
        return normal(entry.spec, matrix_std(entry.spec));
      case Start::kGenerator:
        return normal(entry.spec, 1.0 / std::sqrt(static_cast<double>(config_.d_model)));
      case Start::kZero:
        return at::zeros(shape, dtype_);
      case Start::kOne:
        return at::full(shape, 1.0, dtype_);
      case Start::kNewest:
        return newest(shape).to(dtype_);
      case Start::kPostNorm:
        return at::full(shape, kPostNorm, dtype_);
      case Start::kAlpha:
        return alpha(shape[0], entry.index).to(dtype_);
      case Start::kScale:
        return at::full(shape, kScale, dtype_);
      case Start::kRouter:
        break;
    }
    return router(entry.spec, seed_).to(dtype_);
  }

 private:
  at::Tensor normal(const nn::ParameterSpec& spec, double std) const {
    return nn::normal_values(spec.shape, std, seed_, stream_of(spec), dtype_);
  }

  double matrix_std(const nn::ParameterSpec& spec) const {
    if (spec.role == nn::Role::kEmbed && options_.embedding_std) {
      return *options_.embedding_std;
    }
    const nn::Init init = config_.parallel_block ? nn::Init::kGptNeoX : nn::Init::kXavier;
    return options_.std ? *options_.std : nn::standard_deviation(decoder_, init, spec);
  }

  const MuddConfig& config_;
  nn::DecoderConfig decoder_;
  std::uint64_t seed_;
  at::ScalarType dtype_;
  const InitOptions& options_;
};

void check_std(const char* name, const std::optional<double>& std) {
  require<ValueError>(!std || (std::isfinite(*std) && *std >= 0.0), kFunction,
                      std::string(name) + " must be a finite number >= 0",
                      std ? std::to_string(*std) : "");
}

}  // namespace

std::uint64_t stream_of(const nn::ParameterSpec& spec) {
  constexpr std::uint64_t kRoles = 64;  // at most
  return static_cast<std::uint64_t>(spec.layer + 1) * kRoles +
         static_cast<std::uint64_t>(spec.role);
}

at::Tensor initial_value(const MuddConfig& config, const Entry& entry, std::uint64_t seed,
                         at::ScalarType dtype) {
  const InitOptions options;
  return Initial(config, seed, dtype, options).value(entry);
}

std::vector<at::Tensor> initial_values(const MuddConfig& config, std::uint64_t seed,
                                       at::ScalarType dtype, const InitOptions& options) {
  check(config);
  nn::check_initial_dtype(kFunction, dtype);
  check_std("init_std", options.std);
  check_std("embedding_std", options.embedding_std);
  const Initial initial(config, seed, dtype, options);
  std::vector<at::Tensor> values;
  for (const Entry& entry : entries_of(config)) {
    values.push_back(initial.value(entry));
  }
  return values;
}

}  // namespace paperlab::mudd
