// Core-context attention in decoders, and in those of transformers.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "bindings/src/registrars.h"
#include "paperlab/cca/decoder_attention.h"
#include "paperlab/cca/rows.h"
#include "paperlab/nn/load.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor attention_of_rows(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const cca::Options& options,
                             const OptionalTensor& key_start, const OptionalTensor& key_end,
                             std::optional<double> scale) {
  const cca::Rows rows = {key_start.value_or(at::Tensor()), key_end.value_or(at::Tensor()), scale};
  return cca::attention_of_rows(query, key, value, options, rows);
}

}  // namespace

void register_cca_model(py::module_& m) {
  m.def(
      "cca_apply",
      [](const nn::HfDecoder& model, const cca::Options& options) {
        cca::apply(*model.decoder, options);
      },
      py::arg("model"), py::arg("options"));
  m.def(
      "cca_applied",
      [](const nn::HfDecoder& model) {
        const cca::Options* options = cca::applied(*model.decoder);
        return options == nullptr ? std::nullopt : std::optional(*options);
      },
      py::arg("model"));
  m.def(
      "cca_remove", [](const nn::HfDecoder& model) { cca::remove(*model.decoder); },
      py::arg("model"));
  m.def("cca_attention_of_rows", &attention_of_rows, py::arg("query"), py::arg("key"),
        py::arg("value"), py::arg("options"), py::arg("key_start"), py::arg("key_end"),
        py::arg("scale"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace paperlab::bindings
