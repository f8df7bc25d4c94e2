#include "paperlab/nn/load.h"

#include <utility>

#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/save.h"
#include "paperlab/ops/device.h"

namespace paperlab::nn {
namespace {

std::vector<at::Tensor> values_of(NamedTensors tensors) {
  std::vector<at::Tensor> values;
  values.reserve(tensors.size());
  for (auto& [name, value] : tensors) {
    values.push_back(std::move(value));
  }
  return values;
}

}  // namespace

HfDecoder load(const std::string& directory, std::optional<at::ScalarType> dtype, bool is_mapped,
               const at::Device& device) {
  ops::require_device(device);
  HfDecoder model{read_hf_directory(directory), {}, nullptr, {}};
  const io::Checkpoint checkpoint(directory);
  MapOptions options;
  options.dtype = dtype;
  options.is_mapped = is_mapped;
  options.config_name = directory + "/config.json";
  Weights weights = map_weights(checkpoint, model.directory.model, std::move(options));
  model.file_names = std::move(weights.file_names);
  model.decoder =
      std::make_shared<Decoder>(model.directory.model.config, model.directory.model.family,
                                values_of(std::move(weights.tensors)));
  model.decoder->to(device);
  return model;
}

HfDecoder new_decoder(const Json& config, Init init, std::uint64_t seed, at::ScalarType dtype) {
  // First: GCC 12 destroys members of an aggregate twice when a later one throws.
  HfModel described = read_hf_config("config", config);
  HfDecoder model;
  model.directory.config = config;
  model.directory.model = std::move(described);
  const HfModel& hf = model.directory.model;
  model.directory.config["architectures"] = {hf.architecture};
  model.decoder = std::make_shared<Decoder>(
      hf.config, hf.family, initial_values(hf.config, hf.family, init, seed, dtype));
  return model;
}

void save(const HfDecoder& model, const std::string& directory) {
  save(model, directory, SaveOptions{});
}

void save(const HfDecoder& model, const std::string& directory, const SaveOptions& options) {
  const auto& parameters = model.decoder->parameters();
  SaveRequest request;
  request.directory = directory;
  const at::ScalarType dtype = parameters.front().value->scalar_type();
  request.config =
      model.dtype == dtype ? model.directory.config : with_dtype(model.directory.config, dtype);
  request.generation_config = model.directory.generation_config;
  for (const Decoder::Parameter& parameter : parameters) {
    request.tensors.emplace_back(parameter.spec.name, parameter.value->detach());
  }
  request.file_names = model.file_names;
  request.files = model.directory.tokenizer_files;
  request.max_shard_bytes = options.max_shard_bytes;
  if (options.weight_files == nullptr) {
    save(request);
  } else {
    save(request, *options.weight_files);
  }
}

}  // namespace paperlab::nn
