// The models of paperlab.mudd; they are decoders as paperlab.nn has them.
#include <ATen/ops/zeros.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/src/choice.h"
#include "bindings/src/dtypes.h"
#include "bindings/src/registrars.h"
#include "paperlab/mudd/analysis.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/load.h"
#include "paperlab/mudd/model.h"
#include "paperlab/mudd/published.h"
#include "paperlab/mudd/trace.h"
#include "paperlab/mudd/vit.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

constexpr char kFunction[] = "MuddFormer";

const std::map<std::string, mudd::Variant> kVariants = {
    {"mudd", mudd::Variant::kMudd},
    {"base", mudd::Variant::kBase},
    {"static", mudd::Variant::kStatic},
    {"dynamic", mudd::Variant::kDynamic},
    {"multiway_static", mudd::Variant::kMultiwayStatic},
    {"multiway_dynamic", mudd::Variant::kMultiwayDynamic},
    {"hyper_connections", mudd::Variant::kHyperConnections},
    {"lime", mudd::Variant::kLime}};
const std::map<std::string, bool> kGelus = {{"exact", false}, {"tanh", true}};
const std::map<std::string, mudd::PrePostNorm> kNorms = {
    {"none", mudd::PrePostNorm::kNone},
    {"eq10", mudd::PrePostNorm::kEq10},
    {"later_revision", mudd::PrePostNorm::kLaterRevision}};

void register_config(py::module_& m) {
  using Config = mudd::MuddConfig;
  py::class_<Config>(m, "MuddConfig")
      .def(py::init<>())
      .def_readwrite("vocab_size", &Config::vocab_size)
      .def_readwrite("num_layers", &Config::num_layers)
      .def_readwrite("d_model", &Config::d_model)
      .def_readwrite("num_heads", &Config::num_heads)
      .def_readwrite("d_ff", &Config::d_ff)
      .def_readwrite("ways", &Config::ways)
      .def_readwrite("norm_eps", &Config::norm_eps)
      .def_readwrite("rope_base", &Config::rope_base)
      .def_readwrite("has_qk_norm", &Config::has_qk_norm)
      .def_readwrite("hidden_round", &Config::hidden_round)
      .def_readwrite("last_hidden_expand", &Config::last_hidden_expand)
      .def_readwrite("ffn_reallocation", &Config::ffn_reallocation)
      .def_readwrite("ffn_round", &Config::ffn_round)
      .def_readwrite("dilation", &Config::dilation)
      .def_readwrite("period", &Config::period)
      .def_readwrite("window", &Config::window)
      .def_readwrite("num_streams", &Config::num_streams)
      .def_readwrite("parallel_block", &Config::parallel_block)
      .def("set_variant",
           [](Config& config, const std::string& name) {
             config.variant = choice(kVariants, kFunction, "variant", name);
           })
      .def("set_gelu",
           [](Config& config, const std::string& name) {
             config.has_tanh_gelu = choice(kGelus, kFunction, "gelu", name);
           })
      .def("set_pre_post_norm", [](Config& config, const std::string& name) {
        config.pre_post_norm = choice(kNorms, kFunction, "pre_post_norm", name);
      });
}

std::optional<at::ScalarType> dtype_of(const std::optional<std::string>& name) {
  return name ? std::optional(choice(kDtypes, "from_pretrained", "dtype", *name)) : std::nullopt;
}

nn::HfDecoder load(const py::bytes& directory, const std::optional<std::string>& dtype) {
  const std::string path = directory;
  const auto type = dtype_of(dtype);
  const py::gil_scoped_release without_gil;
  return mudd::load(path, type);
}

nn::HfDecoder of_tensors(const py::bytes& directory, const std::string& source,
                         const std::vector<std::string>& names,
                         const std::vector<at::Tensor>& values,
                         const std::optional<std::string>& dtype) {
  const std::string path = directory;
  const auto type = dtype_of(dtype);
  nn::NamedTensors tensors;
  for (std::size_t i = 0; i < names.size(); ++i) {
    tensors.emplace_back(names[i], values[i]);
  }
  const py::gil_scoped_release without_gil;
  return mudd::from_tensors(path, source, tensors, type);
}

nn::HfDecoder new_model(const mudd::MuddConfig& config, std::uint64_t seed,
                        const std::string& dtype) {
  const auto type = choice(kDtypes, kFunction, "dtype", dtype);
  const py::gil_scoped_release without_gil;
  return mudd::new_model(config, seed, type);
}

nn::HfEncoder new_vit(const mudd::MuddConfig& model, const std::vector<std::int64_t>& pictures,
                      std::int64_t num_labels, std::uint64_t seed, const std::string& dtype) {
  const auto type = choice(kDtypes, "MuddViT", "dtype", dtype);
  const py::gil_scoped_release without_gil;
  const nn::PatchConfig patches = {pictures.at(0), pictures.at(1), pictures.at(2), pictures.at(3),
                                   pictures.at(4)};
  return mudd::new_vit({patches, num_labels, model}, seed, type);
}

// A model of these settings that is still to get its parameters: zeros are no memory.
nn::HfDecoder of_config(const std::string& text) {
  nn::HfDecoder model;
  model.directory.config = Json::parse(text);
  const auto published = mudd::read_published_config("config", model.directory.config);
  std::vector<at::Tensor> values;
  for (const nn::ParameterSpec& spec : mudd::parameter_specs(published.config)) {
    values.push_back(at::zeros(spec.shape, at::kBFloat16));
  }
  model.decoder = mudd::make_decoder(published.config, std::move(values));
  return model;
}

mudd::MuddConfig config_of(const nn::HfDecoder& model) {
  return mudd::read_published_config("config", model.directory.config).config;
}

using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// States, weights (or None), streams Q, K, V, R of each layer, logits.
std::tuple<std::vector<at::Tensor>, std::vector<std::optional<at::Tensor>>,
           std::vector<FourTensors>, at::Tensor>
trace(const nn::HfDecoder& model, const at::Tensor& tokens) {
  mudd::Trace result = mudd::trace(config_of(model), *model.decoder, tokens);
  std::vector<std::optional<at::Tensor>> weights;
  for (const at::Tensor& value : result.weights) {
    weights.push_back(value.defined() ? std::optional(value) : std::nullopt);
  }
  std::vector<FourTensors> streams;
  for (const mudd::Streams& of : result.streams) {
    streams.emplace_back(of.query, of.key, of.value, of.residual);
  }
  return {std::move(result.states), std::move(weights), std::move(streams),
          std::move(result.logits)};
}

// By stream, then by pair of blocks.
std::map<std::string, std::vector<double>> input_cosines(const nn::HfDecoder& model,
                                                         const at::Tensor& tokens) {
  const auto found = mudd::adjacent_input_cosine(config_of(model), *model.decoder, tokens);
  std::map<std::string, std::vector<double>> result;
  for (std::size_t way = 0; way < found.ways.size(); ++way) {
    result.emplace(std::string(1, found.ways[way]), found.cosines[way]);
  }
  return result;
}

std::vector<double> head_activation(const nn::HfDecoder& model, const at::Tensor& tokens,
                                    std::int64_t num_initial,
                                    const std::vector<std::int64_t>& sink_tokens) {
  return mudd::head_activation_ratio(config_of(model), *model.decoder, tokens,
                                     {num_initial, sink_tokens});
}

// Layer, ways, sources, mean, standard deviation.
using OneConnection =
    std::tuple<std::int64_t, std::string, std::vector<std::int64_t>, at::Tensor, at::Tensor>;

std::vector<OneConnection> rectified_weights(const nn::HfDecoder& model, const at::Tensor& tokens) {
  std::vector<OneConnection> result;
  for (auto& stats : mudd::rectified_connection_weights(config_of(model), *model.decoder, tokens)) {
    result.emplace_back(stats.layer, std::move(stats.ways), std::move(stats.sources),
                        std::move(stats.mean), std::move(stats.std));
  }
  return result;
}

void register_analysis(py::module_& m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  m.def("mudd_input_cosines", &input_cosines, py::arg("model"), py::arg("tokens"), NoGil());
  m.def("mudd_head_activation", &head_activation, py::arg("model"), py::arg("tokens"),
        py::arg("num_initial"), py::arg("sink_tokens"), NoGil());
  m.def("mudd_rectified_weights", &rectified_weights, py::arg("model"), py::arg("tokens"), NoGil());
}

}  // namespace

void register_mudd_model(py::module_& m) {
  register_config(m);
  register_analysis(m);
  m.def("new_mudd", &new_model, py::arg("config"), py::arg("seed"), py::arg("dtype"));
  // pictures: channels, height and width, height and width of a patch.
  m.def("new_mudd_vit", &new_vit, py::arg("config"), py::arg("pictures"), py::arg("num_labels"),
        py::arg("seed"), py::arg("dtype"));
  m.def("mudd_of_config", &of_config, py::arg("config"));
  m.def("load_mudd", &load, py::arg("directory"), py::arg("dtype"));
  m.def("mudd_of_tensors", &of_tensors, py::arg("directory"), py::arg("source"), py::arg("names"),
        py::arg("values"), py::arg("dtype"));
  m.def("trace_mudd", &trace, py::arg("model"), py::arg("tokens"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace paperlab::bindings
