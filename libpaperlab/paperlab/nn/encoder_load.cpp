#include "paperlab/nn/encoder_load.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "paperlab/nn/encoder_parameters.h"
#include "paperlab/nn/init.h"
#include "paperlab/nn/weights_internal.h"
#include "paperlab/ops/device.h"

namespace paperlab::nn {
namespace {

using Tensors = std::map<std::string, io::Checkpoint::Location>;

// Files that belong to encoders besides those that read_hf_files() looks for.
constexpr const char* kFiles[] = {"vocab.txt", "sentencepiece.bpe.model", "spiece.model",
                                  "spm.model", "preprocessor_config.json"};

void add_files(HfDirectory& directory) {
  for (const char* name : kFiles) {
    const std::string file = directory.path + '/' + name;
    std::error_code error;
    if (std::filesystem::is_regular_file(file, error)) {
      directory.tokenizer_files.push_back(file);
    }
  }
}

// A model without a head may come without its pooler, which its states do not need.
void look_for_pooler(const Tensors& tensors, EncoderConfig& config) {
  if (config.output != EncoderOutput::kStates || !config.has_pooler) {
    return;
  }
  const auto specs = encoder_parameter_specs(config);
  const auto pooler = std::find_if(specs.begin(), specs.end(),
                                   [](const auto& spec) { return spec.role == Role::kPooler; });
  const std::vector<std::string> others = encoder_file_names(config, *pooler);
  config.has_pooler = tensors.contains(pooler->name) ||
                      std::any_of(others.begin(), others.end(),
                                  [&](const auto& name) { return tensors.contains(name); });
}

// Names as this checkpoint has them. ViT's blocks go by two generations of names, of which the
// file's is also that of the parameter.
void take_file_names(const Tensors& tensors, const EncoderConfig& config,
                     std::vector<ParameterSpec>& specs) {
  for (ParameterSpec& spec : specs) {
    if (tensors.contains(spec.name)) {
      spec.other_name.clear();
      continue;
    }
    if (!spec.other_name.empty() && tensors.contains(spec.other_name)) {
      spec.name = std::exchange(spec.other_name, {});
      continue;
    }
    spec.other_name.clear();
    for (const std::string& name : encoder_file_names(config, spec)) {
      if (spec.other_name.empty() && tensors.contains(name)) {
        spec.other_name = name;
      }
    }
  }
}

// Tensors of other heads, as specs that follow those of the parameters.
std::vector<ParameterSpec> others_of(const Tensors& tensors, const EncoderConfig& config,
                                     const std::vector<ParameterSpec>& specs,
                                     const std::map<std::string, std::string>& copies) {
  std::vector<ParameterSpec> others;
  for (const auto& [name, location] : tensors) {
    const bool is_known =
        copies.contains(name) ||
        std::any_of(specs.begin(), specs.end(), [&, &key = name](const auto& spec) {
          return spec.name == key || spec.other_name == key;
        });
    if (!is_known && is_of_other_head(config, name)) {
      others.push_back({name, Role::kUnused, -1, false, location.entry->shape, {}, false});
    }
  }
  return others;
}

MapOptions options_of(const HfEncoderModel& model, const std::string& directory,
                      std::optional<at::ScalarType> dtype, bool is_mapped) {
  MapOptions options;
  options.dtype = dtype;
  options.is_mapped = is_mapped;
  options.config_name = directory + "/config.json";
  options.copies = encoder_copies(model.config);
  options.is_buffer = is_encoder_buffer;
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    if (model.dtype == find_type(type)->name) {
      options.mixed_dtype = type;
    }
  }
  return options;
}

bool is_norm(Role role) {
  return role == Role::kAttentionNorm || role == Role::kFfnNorm || role == Role::kFinalNorm ||
         role == Role::kEmbedNorm || role == Role::kRelativeNorm || role == Role::kHeadNorm ||
         role == Role::kConvNorm;
}

at::Tensor initial_value(const EncoderConfig& config, const ParameterSpec& spec, std::uint64_t seed,
                         std::uint64_t stream, at::ScalarType dtype) {
  if (spec.is_bias) {
    return at::zeros(spec.shape, dtype);
  }
  if (is_norm(spec.role)) {
    return at::ones(spec.shape, dtype);
  }
  at::Tensor value = normal_values(spec.shape, config.block.init_std, seed, stream, dtype);
  const bool has_padding = spec.role == Role::kEmbed ||
                           (spec.role == Role::kPositionEmbed && config.counts_from_padding);
  if (has_padding && config.block.pad_token_id) {
    value.select(0, *config.block.pad_token_id).zero_();
  }
  return value;
}

}  // namespace

HfEncoder load_encoder(const std::string& directory, std::optional<at::ScalarType> dtype,
                       bool is_mapped, const at::Device& device) {
  ops::require_device(device);
  HfEncoder model{read_hf_files(directory), {}, {}, {}, nullptr};
  model.model = read_hf_encoder_config(directory + "/config.json", model.directory.config);
  add_files(model.directory);
  const io::Checkpoint checkpoint(directory);
  EncoderConfig& config = model.model.config;
  look_for_pooler(checkpoint.tensors(), config);
  const MapOptions options = options_of(model.model, directory, dtype, is_mapped);
  std::vector<ParameterSpec> specs = encoder_parameter_specs(config);
  take_file_names(checkpoint.tensors(), config, specs);
  const auto others = others_of(checkpoint.tensors(), config, specs, options.copies);
  std::vector<ParameterSpec> all = specs;
  all.insert(all.end(), others.begin(), others.end());
  Weights weights = map_weights(checkpoint, all, options);
  model.file_names = std::move(weights.file_names);
  std::vector<at::Tensor> values;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i < specs.size()) {
      values.push_back(std::move(weights.tensors[i].second));
    } else {
      model.others.push_back(std::move(weights.tensors[i]));
    }
  }
  model.encoder = std::make_shared<Encoder>(config, std::move(specs), std::move(values));
  model.encoder->to(device);
  return model;
}

HfEncoder new_encoder(const Json& config, std::uint64_t seed, at::ScalarType dtype) {
  check_initial_dtype("nn::new_encoder", dtype);
  // First: GCC 12 destroys members of an aggregate twice when a later one throws.
  HfEncoderModel described = read_hf_encoder_config("config", config);
  HfEncoder model;
  model.directory.config = config;
  model.model = std::move(described);
  const EncoderConfig& encoder = model.model.config;
  std::vector<ParameterSpec> specs = encoder_parameter_specs(encoder);
  std::vector<at::Tensor> values;
  for (ParameterSpec& spec : specs) {
    values.push_back(initial_value(encoder, spec, seed, values.size(), dtype));
    spec.other_name.clear();
  }
  model.encoder = std::make_shared<Encoder>(encoder, std::move(specs), std::move(values));
  return model;
}

void save(const HfEncoder& model, const std::string& directory, std::uint64_t max_shard_bytes) {
  SaveRequest request;
  request.directory = directory;
  const at::ScalarType dtype = model.encoder->parameters().first().scalar_type();
  request.config = with_dtype(model.directory.config, dtype);
  request.generation_config = model.directory.generation_config;
  for (const NamedParameter& parameter : model.encoder->parameters().list()) {
    request.tensors.emplace_back(parameter.spec.name, parameter.value->detach());
  }
  for (const auto& [name, tensor] : model.others) {
    request.tensors.emplace_back(name, tensor.to(dtype));
  }
  request.file_names = model.file_names;
  request.files = model.directory.tokenizer_files;
  request.max_shard_bytes = max_shard_bytes;
  save(request);
}

}  // namespace paperlab::nn
