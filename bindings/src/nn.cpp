// Tensors cross here as they are: a parameter of torch.nn is the tensor that the C++ decoder reads.
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/src/choice.h"
#include "bindings/src/dtypes.h"
#include "bindings/src/linear_parts.h"
#include "bindings/src/registrars.h"
#include "paperlab/eval/perplexity.h"
#include "paperlab/nn/generate.h"
#include "paperlab/nn/load.h"
#include "paperlab/nn/roles.h"
#include "paperlab/nn/save.h"
#include "paperlab/nn/streamed.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using NoGil = py::call_guard<py::gil_scoped_release>;
using OptionalTensor = std::optional<at::Tensor>;
using Function = std::function<at::Tensor(const at::Tensor&)>;
using OnWindow = std::function<bool(std::int64_t)>;

const std::map<std::string, nn::Init> kInits = {{"normal", nn::Init::kNormal},
                                                {"gpt_neox", nn::Init::kGptNeoX},
                                                {"gpt2", nn::Init::kGpt2},
                                                {"xavier", nn::Init::kXavier}};

// Weight files that a Python object writes, which has these methods.
class PythonWeightFiles final : public nn::WeightFiles {
 public:
  explicit PythonWeightFiles(const py::object& files) : files_(files) {}

  void write(const std::map<std::string, at::Tensor>& tensors) override {
    const py::gil_scoped_acquire gil;
    files_.attr("write")(tensors);
  }

  void finish() override {
    const py::gil_scoped_acquire gil;
    files_.attr("finish")();
  }

  void discard() noexcept override {
    const py::gil_scoped_acquire gil;
    try {
      files_.attr("discard")();
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("Decoder.save_with");
    }
  }

 private:
  const py::object& files_;
};

nn::HfDecoder load(const py::bytes& directory, const std::optional<std::string>& dtype,
                   bool is_mapped) {
  const std::string path = directory;
  const auto type = dtype ? std::optional(choice(kDtypes, "load", "dtype", *dtype)) : std::nullopt;
  const py::gil_scoped_release without_gil;
  return nn::load(path, type, is_mapped);
}

nn::HfDecoder load_streamed(const py::bytes& directory, const std::optional<std::string>& dtype) {
  const std::string path = directory;
  const auto type =
      dtype ? std::optional(choice(kDtypes, "streamed", "dtype", *dtype)) : std::nullopt;
  const py::gil_scoped_release without_gil;
  return nn::load_streamed(path, type);
}

nn::HfDecoder new_decoder(const std::string& config, const std::string& init, std::uint64_t seed,
                          const std::string& dtype) {
  const auto kind = choice(kInits, "from_config", "init", init);
  const auto type = choice(kDtypes, "from_config", "dtype", dtype);
  const py::gil_scoped_release without_gil;
  return nn::new_decoder(Json::parse(config), kind, seed, type);
}

std::vector<std::pair<std::string, at::Tensor>> parameters(const nn::HfDecoder& model) {
  std::vector<std::pair<std::string, at::Tensor>> named;
  for (const auto& parameter : model.decoder->parameters()) {
    named.emplace_back(parameter.spec.name, *parameter.value);
  }
  return named;
}

at::Tensor forward(const nn::HfDecoder& model, const at::Tensor& tokens,
                   const OptionalTensor& attention_mask, const std::optional<nn::Cache*>& cache,
                   bool last_only) {
  return model.decoder->forward(
      tokens, {attention_mask.value_or(at::Tensor()), cache.value_or(nullptr), last_only});
}

// Ctrl-C ends a long loop with Python's own exception.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) {
    throw py::error_already_set();
  }
}

at::Tensor hidden(const nn::HfDecoder& model, const at::Tensor& tokens,
                  const OptionalTensor& attention_mask) {
  return model.decoder->hidden(tokens, {attention_mask.value_or(at::Tensor()), nullptr, false});
}

at::Tensor token_nll(const nn::HfDecoder& model, const at::Tensor& tokens, std::int64_t context,
                     std::int64_t stride, const std::optional<OnWindow>& on_window) {
  return eval::token_nll(*model.decoder, tokens, {context, stride, on_window.value_or(nullptr)});
}

at::Tensor token_nll_of(const Function& logits, const at::Tensor& tokens, std::int64_t context,
                        std::int64_t stride, const std::optional<OnWindow>& on_window) {
  return eval::token_nll({logits, [](const at::Tensor& rows) { return rows; }}, tokens,
                         {context, stride, on_window.value_or(nullptr)});
}

// A copy of the settings with linear layers of its own; the tensors are the same until
// set_parameter.
nn::HfDecoder copy(const nn::HfDecoder& model) {
  nn::HfDecoder other = model;
  std::vector<at::Tensor> values;
  for (const auto& parameter : model.decoder->parameters()) {
    values.push_back(*parameter.value);
  }
  other.decoder = model.decoder->with_values(std::move(values));
  for (std::int64_t layer = 0; layer < other.decoder->config().num_layers; ++layer) {
    other.decoder->block(layer).attention = model.decoder->block(layer).attention;
  }
  return other;
}

void register_cache(py::module_& m) {
  py::class_<nn::Cache>(m, "Cache")
      .def_readonly("batch_size", &nn::Cache::batch_size)
      .def_readonly("length", &nn::Cache::length)
      .def_readonly("max_length", &nn::Cache::max_length)
      .def_property_readonly("num_bytes", &nn::Cache::num_bytes);
  py::class_<nn::GenerateOptions>(m, "GenerateOptions")
      .def(py::init<>())
      .def_readwrite("max_new_tokens", &nn::GenerateOptions::max_new_tokens)
      .def_readwrite("temperature", &nn::GenerateOptions::temperature)
      .def_readwrite("top_p", &nn::GenerateOptions::top_p)
      .def_readwrite("seed", &nn::GenerateOptions::seed)
      .def_readwrite("prefill_chunk", &nn::GenerateOptions::prefill_chunk)
      .def_readwrite("eos", &nn::GenerateOptions::eos)
      .def_readwrite("pad", &nn::GenerateOptions::pad)
      .def_readwrite("on_tokens", &nn::GenerateOptions::on_tokens);
}

}  // namespace

void register_nn(py::module_& m) {
  register_cache(m);
  py::class_<nn::HfDecoder> decoder(m, "Decoder");
  decoder.def_static("load", &load, py::arg("directory"), py::arg("dtype"), py::arg("is_mapped"))
      .def_static("load_streamed", &load_streamed, py::arg("directory"), py::arg("dtype"))
      .def_static("from_config", &new_decoder, py::arg("config"), py::arg("init"), py::arg("seed"),
                  py::arg("dtype"))
      .def("copy", &copy)
      .def(
          "save",
          [](const nn::HfDecoder& model, const std::string& directory,
             std::uint64_t max_shard_bytes) {
            nn::save(model, directory, {max_shard_bytes, nullptr});
          },
          py::arg("directory"), py::arg("max_shard_bytes"), NoGil())
      .def(
          "save_with",
          [](const nn::HfDecoder& model, const std::string& directory, const py::object& files) {
            PythonWeightFiles weight_files(files);
            nn::save(model, directory, {io::kMaxShardBytes, &weight_files});
          },
          py::arg("directory"), py::arg("files"), NoGil())
      .def_property_readonly(
          "config", [](const nn::HfDecoder& model) { return model.directory.config.dump(); })
      .def_property_readonly(
          "path", [](const nn::HfDecoder& model) { return py::bytes(model.directory.path); })
      .def_property_readonly("vocab_size",
                             [](const nn::HfDecoder& m) { return m.decoder->config().vocab_size; })
      .def_property_readonly(
          "max_positions", [](const nn::HfDecoder& m) { return m.decoder->config().max_positions; })
      .def_property_readonly(
          "eos_token_ids", [](const nn::HfDecoder& m) { return m.decoder->config().eos_token_ids; })
      .def_property_readonly(
          "pad_token_id", [](const nn::HfDecoder& m) { return m.decoder->config().pad_token_id; })
      .def("parameters", &parameters)
      .def("set_parameter",
           [](const nn::HfDecoder& model, const std::string& name, const at::Tensor& value) {
             model.decoder->set_parameter(name, value);
           })
      .def("tensor",
           [](const nn::HfDecoder& model, const std::string& role,
              std::optional<std::int64_t> layer, std::optional<std::int64_t> head) {
             return nn::tensor_of(*model.decoder, role, layer, head);
           })
      .def("new_cache",
           [](const nn::HfDecoder& model, std::int64_t batch_size, std::int64_t max_length) {
             return model.decoder->new_cache(batch_size, max_length);
           })
      .def("forward", &forward, py::arg("tokens"), py::arg("attention_mask"), py::arg("cache"),
           py::arg("last_only"), NoGil())
      .def("hidden", &hidden, py::arg("tokens"), py::arg("attention_mask"), NoGil())
      .def(
          "generate",
          [](const nn::HfDecoder& model, const at::Tensor& tokens,
             const OptionalTensor& attention_mask, const nn::GenerateOptions& options) {
            nn::GenerateOptions with_signals = options;
            with_signals.on_tokens = [&](const at::Tensor& step) {
              check_signals();
              return !options.on_tokens || options.on_tokens(step);
            };
            return nn::generate(*model.decoder, tokens, attention_mask.value_or(at::Tensor()),
                                with_signals);
          },
          py::arg("tokens"), py::arg("attention_mask"), py::arg("options"), NoGil());
  register_linear_parts(decoder, &nn::HfDecoder::decoder);
  m.def("token_nll", &token_nll, py::arg("model"), py::arg("tokens"), py::arg("context"),
        py::arg("stride"), py::arg("on_window"), NoGil());
  m.def("token_nll", &token_nll_of, py::arg("logits"), py::arg("tokens"), py::arg("context"),
        py::arg("stride"), py::arg("on_window"), NoGil());
  m.def(
      "tokens_read",
      [](std::int64_t num_tokens, std::int64_t context, std::int64_t stride) {
        return eval::tokens_read(num_tokens, {context, stride, {}});
      },
      py::arg("num_tokens"), py::arg("context"), py::arg("stride"));
}

}  // namespace paperlab::bindings
