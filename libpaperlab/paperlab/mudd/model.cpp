#include "paperlab/mudd/model.h"

#include <cstdint>
#include <string>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/mudd/hyper_connection.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/lime_connection.h"

namespace paperlab::mudd {
namespace {

using Parameter = std::shared_ptr<const at::Tensor>;

std::shared_ptr<const nn::NormLayer> norm_of(const MuddConfig& config, const nn::ParameterOf& of,
                                             const std::string& name) {
  if (config.parallel_block) {
    return std::make_shared<nn::LayerNorm>(of(name + ".weight"), of(name + ".bias"),
                                           config.norm_eps);
  }
  return std::make_shared<nn::RmsNorm>(of(name + ".weight"), config.norm_eps);
}

DenseLayer dense_layer(const MuddConfig& config, const nn::ParameterOf& of, std::int64_t layer) {
  const std::string number = std::to_string(layer);
  DenseLayer result;
  if (has_way_norms(config, layer)) {
    const std::string norms = "layers." + number + ".attention_norms.";
    result.key_norm = norm_of(config, of, norms + "1");
    result.value_norm = norm_of(config, of, norms + "2");
  }
  if (!aggregate_after(config, layer)) {
    return result;
  }
  const bool is_normed = config.pre_post_norm != PrePostNorm::kNone;
  result.ways = ways_of(config, layer);
  result.sources = sources_of(config, layer);
  result.bias = of("dense_bs." + number);
  if (is_dynamic(config.variant)) {
    const std::string generator = "dynamic_dense." + number;
    result.w1 = of(generator + ".w1.weight");
    result.w2 = of(generator + ".w2.weight");
    result.generator_norm = is_normed ? of(generator + ".norm.weight") : nullptr;
  }
  result.post_norm = is_normed ? of("post_norms." + number + ".weight") : nullptr;
  return result;
}

std::shared_ptr<const nn::Connection> hyper_connection(const MuddConfig& config,
                                                       const nn::ParameterOf& of) {
  std::vector<HyperSite> sites;
  for (std::int64_t number = 0; number < 2 * config.num_layers; ++number) {
    const std::string site = "hyper_connections." + std::to_string(number) + ".";
    sites.push_back({of(site + "norm.weight"), of(site + "static_alpha"), of(site + "static_beta"),
                     of(site + "dynamic_alpha_fn"), of(site + "dynamic_beta_fn"),
                     of(site + "dynamic_alpha_scale"), of(site + "dynamic_beta_scale")});
  }
  return std::make_shared<HyperConnection>(std::move(sites), config.norm_eps);
}

std::shared_ptr<const nn::Connection> lime_connection(const MuddConfig& config,
                                                      const nn::ParameterOf& of) {
  std::vector<Parameter> routers;
  for (std::int64_t layer = 1; layer < config.num_layers; ++layer) {
    routers.push_back(of("routers." + std::to_string(layer)));
  }
  return std::make_shared<LimeConnection>(std::move(routers));
}

std::shared_ptr<const nn::Connection> dense_connection(
    const MuddConfig& config, const nn::ParameterOf& of,
    std::shared_ptr<const DenseObserver> observer) {
  DenseOptions options;
  options.eps = config.norm_eps;
  options.has_tanh_gelu = config.has_tanh_gelu;
  options.is_multiway = is_multiway(config.variant);
  std::vector<DenseLayer> layers;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    layers.push_back(dense_layer(config, of, layer));
  }
  if (is_dense(config.variant) && config.pre_post_norm != PrePostNorm::kNone) {
    options.pre_post_norm = config.pre_post_norm;
    for (std::int64_t state = 0; state <= config.num_layers; ++state) {
      options.source_norms.push_back(of("source_norms." + std::to_string(state) + ".weight"));
    }
  }
  return std::make_shared<DenseConnection>(std::move(layers), std::move(options),
                                           std::move(observer));
}

}  // namespace

std::shared_ptr<const nn::Connection> make_connection(
    const MuddConfig& config, const nn::ParameterOf& of,
    std::shared_ptr<const DenseObserver> observer) {
  const bool is_base = config.variant == Variant::kBase;
  if (is_dense(config.variant) || (is_base && observer != nullptr)) {
    return dense_connection(config, of, std::move(observer));
  }
  require<ValueError>(observer == nullptr, "mudd::make_connection",
                      "no observer where there are no dense connections", "one");
  if (is_base) {
    return std::make_shared<nn::ResidualConnection>();
  }
  return config.variant == Variant::kLime ? lime_connection(config, of)
                                          : hyper_connection(config, of);
}

std::shared_ptr<nn::Decoder> make_decoder(const MuddConfig& config, std::vector<at::Tensor> values,
                                          std::shared_ptr<const DenseObserver> observer) {
  return std::make_shared<nn::Decoder>(
      decoder_config(config), parameter_specs(config), std::move(values),
      [config, observer = std::move(observer)](const nn::ParameterOf& of) {
        return make_connection(config, of, observer);
      });
}

}  // namespace paperlab::mudd
