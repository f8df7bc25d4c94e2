#include "paperlab/mudd/load.h"

#include <ATen/core/Formatting.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/model.h"
#include "paperlab/mudd/published.h"

namespace paperlab::mudd {
namespace {

std::vector<at::Tensor> values_of(nn::NamedTensors tensors) {
  std::vector<at::Tensor> values;
  for (auto& [name, value] : tensors) {
    values.push_back(std::move(value));
  }
  return values;
}

constexpr char kHead[] = "output.weight";
constexpr char kConfigName[] = "/config.json";
constexpr std::size_t kMaxNames = 8;                                                // in a message
constexpr std::array kTypes = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};  // of weights

std::string list_text(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxNames); ++i) {
    text += (i == 0 ? "'" : ", '") + names[i] + "'";
  }
  const bool is_cut = names.size() > kMaxNames;
  return is_cut ? text + " and " + std::to_string(names.size() - kMaxNames) + " more" : text;
}

std::map<std::string, at::Tensor> by_name(const nn::NamedTensors& tensors) {
  std::map<std::string, at::Tensor> result;
  for (const auto& [name, value] : tensors) {
    if (!is_published_buffer(name)) {
      result.emplace(name, value);
    }
  }
  return result;
}

// A copy, so that what the tensor was a part of is let go.
at::Tensor checked_copy(const std::string& source, const nn::ParameterSpec& spec,
                        const at::Tensor& value, std::optional<at::ScalarType> dtype) {
  const std::string tensor = source + ": tensor '" + spec.name + "'";
  require<ValueError>(value.sizes() == at::IntArrayRef(spec.shape), tensor.c_str(),
                      c10::str("must be ", at::IntArrayRef(spec.shape)), c10::str(value.sizes()));
  const bool is_known =
      std::find(kTypes.begin(), kTypes.end(), value.scalar_type()) != kTypes.end();
  require<ValueError>(is_known, tensor.c_str(), "must be float32, float64, bfloat16 or float16",
                      at::toString(value.scalar_type()));
  return value.detach().to(dtype.value_or(value.scalar_type()), /*non_blocking=*/false,
                           /*copy=*/true, at::MemoryFormat::Contiguous);
}

nn::NamedTensors checked(const std::string& source, const MuddConfig& config,
                         std::map<std::string, at::Tensor> tensors,
                         std::optional<at::ScalarType> dtype) {
  nn::NamedTensors result;
  std::vector<std::string> missing;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      missing.push_back(spec.name);
    } else {
      result.emplace_back(spec.name, checked_copy(source, spec, found->second, dtype));
      tensors.erase(found);
    }
  }
  require<ValueError>(missing.empty(), source.c_str(), "all tensors of the model",
                      "none of " + list_text(missing));
  if (config.has_tied_head) {
    const auto head = tensors.find(kHead);
    const bool is_copy = head == tensors.end() ||
                         head->second.equal(result.front().second.to(head->second.scalar_type()));
    require<ValueError>(is_copy, source.c_str(),
                        "the embedding as 'output.weight', to which tie_word_embeddings ties it",
                        "another tensor");
    tensors.erase(kHead);
  }
  std::vector<std::string> unknown;
  unknown.reserve(tensors.size());
  for (const auto& [name, value] : tensors) {
    unknown.push_back(name);
  }
  require<ValueError>(unknown.empty(), source.c_str(), "no tensors but the model's",
                      list_text(unknown));
  nn::check_no_nan(source, result);
  return result;
}

// Norms compute in float32 unless the model is in float64; what rounds to 0 there divides by 0.
void check_eps(const std::string& source, const MuddConfig& config, at::ScalarType dtype) {
  require<ValueError>(dtype == at::kDouble || static_cast<float>(config.norm_eps) > 0.0F,
                      source.c_str(),
                      "norm_eps must be > 0 in float32, in which the norms of this dtype compute",
                      c10::str(config.norm_eps));
}

PublishedModel read_directory(const std::string& directory, nn::HfDecoder& model) {
  model.directory = nn::read_hf_files(directory);
  return read_published_config(directory + kConfigName, model.directory.config);
}

}  // namespace

nn::HfDecoder new_model(const MuddConfig& config, std::uint64_t seed, at::ScalarType dtype,
                        const InitOptions& init) {
  nn::HfDecoder model;
  model.directory.config = published_config(config);
  check_eps("MuddFormer", config, dtype);
  model.decoder = make_decoder(config, initial_values(config, seed, dtype, init));
  return model;
}

nn::HfDecoder load(const std::string& directory, std::optional<at::ScalarType> dtype) {
  nn::HfDecoder model;
  const PublishedModel published = read_directory(directory, model);
  const MuddConfig& config = published.config;
  nn::MapOptions options;
  options.dtype = dtype;
  options.config_name = directory + kConfigName;
  options.is_buffer = is_published_buffer;
  if (config.has_tied_head) {
    options.copies.emplace(kHead, parameter_specs(config).front().name);
  }
  nn::Weights weights =
      nn::map_weights(io::Checkpoint(directory), parameter_specs(config), options);
  model.file_names = std::move(weights.file_names);
  check_eps(options.config_name, config, weights.tensors.front().second.scalar_type());
  model.decoder = make_decoder(config, values_of(std::move(weights.tensors)));
  return model;
}

nn::HfDecoder from_tensors(const std::string& directory, const std::string& source,
                           const nn::NamedTensors& tensors, std::optional<at::ScalarType> dtype) {
  nn::HfDecoder model;
  const MuddConfig config = read_directory(directory, model).config;
  nn::NamedTensors values = checked(source, config, by_name(tensors), dtype);
  check_eps(directory + kConfigName, config, values.front().second.scalar_type());
  model.decoder = make_decoder(config, values_of(std::move(values)));
  return model;
}

}  // namespace paperlab::mudd
