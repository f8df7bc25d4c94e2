// Encoders in Python: a parameter of torch.nn is the tensor that the C++ encoder reads.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/src/choice.h"
#include "bindings/src/dtypes.h"
#include "bindings/src/linear_parts.h"
#include "bindings/src/registrars.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/nn/encoder_parameters.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using NoGil = py::call_guard<py::gil_scoped_release>;
using OptionalTensor = std::optional<at::Tensor>;

nn::HfEncoder load(const py::bytes& directory, const std::optional<std::string>& dtype,
                   bool is_mapped) {
  const std::string path = directory;
  const auto type = dtype ? std::optional(choice(kDtypes, "load", "dtype", *dtype)) : std::nullopt;
  const py::gil_scoped_release without_gil;
  return nn::load_encoder(path, type, is_mapped);
}

nn::HfEncoder new_encoder(const std::string& config, std::uint64_t seed, const std::string& dtype) {
  const auto type = choice(kDtypes, "from_config", "dtype", dtype);
  const py::gil_scoped_release without_gil;
  return nn::new_encoder(Json::parse(config), seed, type);
}

std::vector<std::pair<std::string, at::Tensor>> parameters(const nn::HfEncoder& model) {
  std::vector<std::pair<std::string, at::Tensor>> named;
  for (const auto& parameter : model.encoder->parameters().list()) {
    named.emplace_back(parameter.spec.name, *parameter.value);
  }
  return named;
}

nn::EncoderInput input_of(const at::Tensor& tokens, const OptionalTensor& attention_mask,
                          const OptionalTensor& token_type_ids) {
  return {tokens, attention_mask.value_or(at::Tensor()), token_type_ids.value_or(at::Tensor()), {}};
}

// A copy of the settings with linear layers of its own; the tensors are the same until
// set_parameter.
nn::HfEncoder copy(const nn::HfEncoder& model) {
  nn::HfEncoder other = model;
  std::vector<at::Tensor> values;
  for (const auto& parameter : model.encoder->parameters().list()) {
    values.push_back(*parameter.value);
  }
  other.encoder = model.encoder->with_values(std::move(values));
  return other;
}

// name of a linear layer of this model -> its other name, where it has one.
std::map<std::string, std::string> other_linear_names(const nn::HfEncoder& model) {
  const auto all = nn::other_linear_names(model.encoder->config());
  std::map<std::string, std::string> names;
  for (const nn::LinearSlot* slot : model.encoder->linears()) {
    if (const auto found = all.find(slot->name); found != all.end()) {
      names.insert(*found);
    }
  }
  return names;
}

void register_forward(py::class_<nn::HfEncoder>& encoder) {
  encoder
      .def(
          "forward",
          [](const nn::HfEncoder& model, const at::Tensor& tokens, const OptionalTensor& mask,
             const OptionalTensor& types) {
            return model.encoder->forward(input_of(tokens, mask, types));
          },
          py::arg("tokens"), py::arg("attention_mask"), py::arg("token_type_ids"), NoGil())
      .def(
          "hidden",
          [](const nn::HfEncoder& model, const at::Tensor& tokens, const OptionalTensor& mask,
             const OptionalTensor& types) {
            return model.encoder->hidden(input_of(tokens, mask, types));
          },
          py::arg("tokens"), py::arg("attention_mask"), py::arg("token_type_ids"), NoGil())
      .def(
          "forward_pixels",
          [](const nn::HfEncoder& model, const at::Tensor& pixels) {
            return model.encoder->forward({{}, {}, {}, pixels});
          },
          py::arg("pixels"), NoGil())
      .def(
          "hidden_pixels",
          [](const nn::HfEncoder& model, const at::Tensor& pixels) {
            return model.encoder->hidden({{}, {}, {}, pixels});
          },
          py::arg("pixels"), NoGil());
}

}  // namespace

void register_nn_encoder(py::module_& m) {
  m.def("encoder_model_types", &nn::encoder_model_types);
  py::class_<nn::HfEncoder> encoder(m, "Encoder");
  encoder.def_static("load", &load, py::arg("directory"), py::arg("dtype"), py::arg("is_mapped"))
      .def_static("from_config", &new_encoder, py::arg("config"), py::arg("seed"), py::arg("dtype"))
      .def("copy", &copy)
      .def(
          "save",
          [](const nn::HfEncoder& model, const std::string& directory,
             std::uint64_t max_shard_bytes) { nn::save(model, directory, max_shard_bytes); },
          py::arg("directory"), py::arg("max_shard_bytes"), NoGil())
      .def_property_readonly(
          "config", [](const nn::HfEncoder& model) { return model.directory.config.dump(); })
      .def_property_readonly(
          "path", [](const nn::HfEncoder& model) { return py::bytes(model.directory.path); })
      .def_property_readonly(
          "reads_pixels",
          [](const nn::HfEncoder& model) { return nn::reads_pixels(model.encoder->config()); })
      .def_property_readonly(
          "vocab_size",
          [](const nn::HfEncoder& model) { return model.encoder->config().block.vocab_size; })
      .def_property_readonly(
          "num_labels",
          [](const nn::HfEncoder& model) { return model.encoder->config().num_labels; })
      .def_property_readonly(
          "max_positions",
          [](const nn::HfEncoder& model) { return model.encoder->config().block.max_positions; })
      .def("other_linear_names", &other_linear_names)
      .def("parameters", &parameters)
      .def("set_parameter",
           [](const nn::HfEncoder& model, const std::string& name, const at::Tensor& value) {
             model.encoder->set_parameter(name, value);
           })
      .def("tensor", [](const nn::HfEncoder& model, const std::string& role,
                        std::optional<std::int64_t> layer, std::optional<std::int64_t> head) {
        return nn::tensor_of(*model.encoder, role, layer, head);
      });
  register_forward(encoder);
  register_linear_parts(encoder, &nn::HfEncoder::encoder);
}

}  // namespace paperlab::bindings
