#include "paperlab/nn/streamed.h"

#include <ATen/ops/empty.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/linear.h"
#include "paperlab/nn/weights.h"
#include "paperlab/nn/widened.h"
#include "paperlab/ops/linear.h"

namespace paperlab::nn {
namespace {

using Mappings = std::vector<std::shared_ptr<io::Mapping>>;

/// The mapping in which a tensor's memory lies; null if it has memory of its own.
std::shared_ptr<io::Mapping> mapping_of(const at::Tensor& tensor, const Mappings& mappings) {
  const auto* first = static_cast<const std::byte*>(tensor.const_data_ptr());
  for (const std::shared_ptr<io::Mapping>& mapping : mappings) {
    if (first >= mapping->data() && first < mapping->data() + mapping->num_bytes()) {
      return mapping;
    }
  }
  return nullptr;
}

/// x W^T + b with a matrix that lies in a mapped file.
class MappedLinear final : public Linear {
 public:
  MappedLinear(at::Tensor weight, at::Tensor bias, at::ScalarType dtype,
               std::shared_ptr<io::Mapping> mapping)
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        dtype_(dtype),
        mapping_(std::move(mapping)) {}

  at::Tensor forward(const at::Tensor& x) const override {
    at::Tensor y = ops::linear(x, widened(weight_.to(dtype_)), widened(bias_));
    if (mapping_ != nullptr) {
      const auto* first = static_cast<const std::byte*>(weight_.const_data_ptr());
      mapping_->release(static_cast<std::uint64_t>(first - mapping_->data()), weight_.nbytes());
    }
    return y;
  }

 private:
  at::Tensor weight_;  // [out, in], as it is stored
  at::Tensor bias_;    // may be not defined
  at::ScalarType dtype_;
  std::shared_ptr<io::Mapping> mapping_;
};

/// A tensor that says what a parameter is and has no memory for it.
at::Tensor stand_in(const at::Tensor& parameter, at::ScalarType dtype) {
  return at::empty({1}, parameter.options().dtype(dtype)).zero_().expand(parameter.sizes());
}

/// Gives the blocks' layers matrices of the files, and the decoder parameters of the dtype.
void stream_layers(Decoder& decoder, at::ScalarType dtype, const Mappings& mappings) {
  std::vector<LinearSlot*> slots = decoder.linears();
  slots.pop_back();  // the head, of which a window needs each row many times
  std::vector<at::Tensor> weights;
  std::set<const void*> streamed;
  for (const LinearSlot* slot : slots) {
    weights.push_back(dynamic_cast<const DenseLinear&>(*slot->layer).weight());
    streamed.insert(weights.back().const_data_ptr());
  }
  for (const Decoder::Parameter& parameter : decoder.parameters()) {
    const at::Tensor& value = *parameter.value;
    if (value.scalar_type() != dtype) {
      const bool is_streamed = streamed.count(value.const_data_ptr()) != 0;
      decoder.set_parameter(parameter.spec.name,
                            is_streamed ? stand_in(value, dtype) : value.to(dtype));
    }
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor bias = dynamic_cast<const DenseLinear&>(*slots[i]->layer).bias();
    slots[i]->layer =
        std::make_shared<MappedLinear>(weights[i], bias, dtype, mapping_of(weights[i], mappings));
  }
}

}  // namespace

HfDecoder load_streamed(const std::string& directory, std::optional<at::ScalarType> dtype) {
  HfDecoder model{read_hf_directory(directory), {}, nullptr, {}};
  const HfModel& hf = model.directory.model;
  const io::Checkpoint checkpoint(directory);
  MapOptions options;
  options.is_writable = false;
  options.config_name = directory + "/config.json";
  Weights weights = map_weights(checkpoint, hf, std::move(options));
  std::vector<at::Tensor> values;
  for (auto& [name, value] : weights.tensors) {
    values.push_back(std::move(value));
  }
  model.file_names = std::move(weights.file_names);
  model.decoder = std::make_shared<Decoder>(hf.config, hf.family, std::move(values));
  const at::ScalarType stored = model.decoder->parameters().front().value->scalar_type();
  stream_layers(*model.decoder, dtype.value_or(stored), weights.mappings);
  return model;
}

}  // namespace paperlab::nn
