#include "paperlab/nn/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <set>

#include "paperlab/core/error.h"
#include "paperlab/nn/weights_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::nn {
namespace {

using Location = io::Checkpoint::Location;

constexpr std::size_t kMaxNames = 8;  // in a message

constexpr std::array kTypes = {NamedType{"float32", at::kFloat, io::ElementType::kF32},
                               NamedType{"float64", at::kDouble, io::ElementType::kF64},
                               NamedType{"bfloat16", at::kBFloat16, io::ElementType::kBF16},
                               NamedType{"float16", at::kHalf, io::ElementType::kF16}};

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return '[' + text + ']';
}

std::string list_text(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxNames); ++i) {
    text += (i == 0 ? "" : ", ") + io::quoted_name(names[i]);
  }
  const bool is_cut = names.size() > kMaxNames;
  return is_cut ? text + " and " + std::to_string(names.size() - kMaxNames) + " more" : text;
}

[[noreturn]] void refuse(const Location& location, const std::string& reason) {
  throw ValueError(location.file->path() + ": tensor " + io::quoted_name(location.entry->name) +
                   ' ' + reason);
}

// Buffers, not parameters: frequencies and masks that old versions of transformers stored.
bool is_stale(std::string_view name) {
  constexpr std::array kEndings = {".rotary_emb.inv_freq", ".attention.bias",
                                   ".attention.masked_bias", ".attn.bias", ".attn.masked_bias"};
  return std::any_of(kEndings.begin(), kEndings.end(),
                     [&](const char* ending) { return name.ends_with(ending); });
}

at::ScalarType type_of(const Location& location) {
  for (const NamedType& type : kTypes) {
    if (type.element == location.entry->type) {
      return type.scalar;
    }
  }
  std::string reason = "must be ";
  reason.append(type_names()).append(", got ").append(io::element_type_name(location.entry->type));
  refuse(location, reason);
}

/// Where each parameter lies, and the copies of parameters.
struct Found {
  std::vector<Location> parameters;                      // by spec
  std::vector<std::pair<Location, std::size_t>> copies;  // of which spec
  FileNames file_names;
};

class Finder {
 public:
  Finder(const io::Checkpoint& checkpoint, const std::vector<ParameterSpec>& specs,
         const MapOptions& options)
      : checkpoint_(checkpoint), specs_(specs), options_(options) {}

  Found find() {
    for (const ParameterSpec& spec : specs_) {
      found_.parameters.push_back(parameter(spec));
    }
    for (const auto& [name, location] : checkpoint_.tensors()) {
      if (used_.count(name) == 0 && !is_buffer(name) && !add_copy(name, location)) {
        unknown_.push_back(name);
      }
    }
    if (!missing_.empty() || !unknown_.empty()) {
      const bool is_both = !missing_.empty() && !unknown_.empty();
      throw ValueError(checkpoint_.directory() + ": " +
                       (missing_.empty() ? "" : "lacks the tensors " + list_text(missing_)) +
                       (is_both ? "; " : "") +
                       (unknown_.empty() ? "" : "has unknown tensors " + list_text(unknown_)));
    }
    return std::move(found_);
  }

 private:
  bool is_buffer(const std::string& name) const {
    return options_.is_buffer ? options_.is_buffer(name) : is_stale(name);
  }

  Location parameter(const ParameterSpec& spec) {
    for (const std::string& name : {spec.name, spec.other_name}) {
      const auto at = checkpoint_.tensors().find(name);
      if (!name.empty() && at != checkpoint_.tensors().end()) {
        used_.insert(name);
        if (name != spec.name) {
          found_.file_names[spec.name] = {name};
        }
        return at->second;
      }
    }
    missing_.push_back(spec.name);
    return {};
  }

  bool add_copy(const std::string& name, const Location& location) {
    const auto copied = options_.copies.find(name);
    for (std::size_t i = 0; copied != options_.copies.end() && i < specs_.size(); ++i) {
      if (specs_[i].name == copied->second && found_.parameters[i].entry != nullptr) {
        auto& names =
            found_.file_names.try_emplace(specs_[i].name, 1, specs_[i].name).first->second;
        names.push_back(name);
        found_.copies.emplace_back(location, i);
        return true;
      }
    }
    return false;
  }

  const io::Checkpoint& checkpoint_;
  const std::vector<ParameterSpec>& specs_;
  const MapOptions& options_;
  Found found_;
  std::set<std::string> used_;
  std::vector<std::string> missing_;
  std::vector<std::string> unknown_;
};

void check_shape(const Location& location, const ParameterSpec& spec, const MapOptions& options) {
  const std::vector<std::int64_t>& got = location.entry->shape;
  if (got == spec.shape) {
    return;
  }
  std::string reason = "must be " + shape_text(spec.shape) + ", got " + shape_text(got);
  const bool has_vocabulary = spec.role == Role::kEmbed || spec.role == Role::kHead;
  if (has_vocabulary && !got.empty() && got[0] != spec.shape[0]) {
    reason += ": its vocabulary has " + std::to_string(got[0]) + " tokens, vocab_size in " +
              (options.config_name.empty() ? "config.json" : options.config_name) + " is " +
              std::to_string(spec.shape[0]);
  }
  refuse(location, reason);
}

/// The tensors of a checkpoint's files; each file is mapped once.
class Files {
 public:
  explicit Files(bool is_writable) : is_writable_(is_writable) {}

  // The bytes of the tensor, valid as long as the mapping.
  const std::byte* data(const Location& location) {
    return mapping(location)->data() + location.entry->offset;
  }

  // In the mapped file, unless its elements are not aligned there.
  at::Tensor map(const Location& location) {
    const auto options = at::TensorOptions(type_of(location));
    std::byte* bytes = mapping(location)->data() + location.entry->offset;
    if (reinterpret_cast<std::uintptr_t>(bytes) % options.dtype().itemsize() == 0) {
      return at::from_blob(
          bytes, location.entry->shape, [keep = mapping(location)](void*) {}, options);
    }
    at::Tensor tensor = at::empty(location.entry->shape, options);
    std::memcpy(tensor.data_ptr(), bytes, location.entry->num_bytes);
    return tensor;
  }

  // The tensor has been read and not written: its pages may go.
  void release(const Location& location) {
    const auto mapped = mappings_.find(location.file);
    if (mapped != mappings_.end()) {
      mapped->second->release(location.entry->offset, location.entry->num_bytes);
    }
  }

  std::vector<std::shared_ptr<io::Mapping>> mappings() const {
    std::vector<std::shared_ptr<io::Mapping>> all;
    for (const auto& [file, mapped] : mappings_) {
      all.push_back(mapped);
    }
    return all;
  }

 private:
  const std::shared_ptr<io::Mapping>& mapping(const Location& location) {
    std::shared_ptr<io::Mapping>& mapped = mappings_[location.file];
    if (mapped == nullptr) {
      mapped = location.file->file().map(is_writable_);
    }
    return mapped;
  }

  bool is_writable_;
  std::map<const io::SafetensorsFile*, std::shared_ptr<io::Mapping>> mappings_;
};

// Into memory of their own, on all threads.
std::vector<at::Tensor> read_all(const std::vector<Location>& locations) {
  std::vector<at::Tensor> tensors;
  std::map<const io::SafetensorsFile*, std::vector<io::ReadRange>> ranges;
  for (const Location& location : locations) {
    tensors.push_back(at::empty(location.entry->shape, type_of(location)));
    ranges[location.file].push_back(
        {location.entry->offset, location.entry->num_bytes, tensors.back().data_ptr()});
  }
  for (const auto& [file, list] : ranges) {
    file->file().read(list, ops::torch_executor());
  }
  return tensors;
}

// The wanted type, or that of all, or the one for types that differ.
at::ScalarType result_type(const std::vector<Location>& locations, const MapOptions& options) {
  at::ScalarType widest = type_of(locations.front());
  bool is_mixed = false;
  for (const Location& location : locations) {
    const at::ScalarType type = type_of(location);
    is_mixed = is_mixed || type != widest;
    widest = c10::promoteTypes(widest, type);
  }
  return options.dtype.value_or(is_mixed ? options.mixed_dtype.value_or(widest) : widest);
}

void check_result_type(const std::optional<at::ScalarType>& type) {
  const bool is_known = !type || std::any_of(kTypes.begin(), kTypes.end(),
                                             [&](const auto& t) { return t.scalar == *type; });
  require<DTypeError>(is_known, "nn::map_weights", "dtype must be " + std::string(type_names()),
                      type ? at::toString(*type) : "");
}

void check_copies(const Found& found, Files& files) {
  for (const auto& [copy, i] : found.copies) {
    const Location& original = found.parameters[i];
    const bool is_equal =
        copy.entry->type == original.entry->type && copy.entry->shape == original.entry->shape &&
        std::memcmp(files.data(copy), files.data(original), copy.entry->num_bytes) == 0;
    if (!is_equal) {
      refuse(copy, "must be equal to " + io::quoted_name(original.entry->name) +
                       ", to which tie_word_embeddings ties it");
    }
    files.release(copy);
    files.release(original);
  }
}

// The tensors as they are stored.
std::vector<at::Tensor> stored_tensors(const Found& found, Files& files,
                                       const MapOptions& options) {
  if (!options.is_mapped) {
    return read_all(found.parameters);
  }
  std::vector<at::Tensor> tensors;
  tensors.reserve(found.parameters.size());
  for (const Location& location : found.parameters) {
    tensors.push_back(files.map(location));
  }
  return tensors;
}

// One tensor after another, so that no more of the files is in memory.
void check_no_nan_of(const std::vector<Location>& locations, const std::vector<at::Tensor>& tensors,
                     Files& files) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (const std::optional<NanPlace> place = find_nan({tensors[i]})) {
      refuse(locations[i], "holds NaN at index " + shape_text(place->index));
    }
    files.release(locations[i]);
  }
}

}  // namespace

const char* type_names() { return "float32, float64, bfloat16 or float16"; }

const NamedType* find_type(at::ScalarType type) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(),
                                   [&](const NamedType& known) { return known.scalar == type; });
  return found == kTypes.end() ? nullptr : found;
}

Weights map_weights(const io::Checkpoint& checkpoint, const std::vector<ParameterSpec>& specs,
                    const MapOptions& options) {
  check_result_type(options.dtype);
  Found found = Finder(checkpoint, specs, options).find();
  Weights weights{{}, std::move(found.file_names)};
  if (specs.empty()) {
    return weights;
  }
  for (std::size_t i = 0; i < specs.size(); ++i) {
    check_shape(found.parameters[i], specs[i], options);
  }
  const at::ScalarType type = result_type(found.parameters, options);
  Files files(options.is_writable);
  const std::vector<at::Tensor> stored = stored_tensors(found, files, options);
  if (options.checks_nan) {
    check_no_nan_of(found.parameters, stored, files);
  }
  check_copies(found, files);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    weights.tensors.emplace_back(specs[i].name, stored[i].to(type));
    if (stored[i].scalar_type() != type) {
      files.release(found.parameters[i]);
    }
  }
  weights.mappings = files.mappings();
  return weights;
}

Weights map_weights(const io::Checkpoint& checkpoint, const HfModel& model, MapOptions options) {
  const std::vector<ParameterSpec> specs = parameter_specs(model.config, model.family);
  if (model.config.has_tied_head) {
    for (const std::string& name : head_names(model.family)) {
      options.copies.emplace(name, specs.front().name);  // the embedding
    }
  }
  for (const NamedType& type : kTypes) {
    if (!options.mixed_dtype && model.dtype == type.name) {
      options.mixed_dtype = type.scalar;
    }
  }
  return map_weights(checkpoint, specs, options);
}

Json with_dtype(Json config, at::ScalarType dtype) {
  const NamedType* type = find_type(dtype);
  require<DTypeError>(type != nullptr, "nn::with_dtype",
                      "dtype must be " + std::string(type_names()), at::toString(dtype));
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (config.contains(key)) {
      config[key] = type->name;
    }
  }
  return config;
}

}  // namespace paperlab::nn
