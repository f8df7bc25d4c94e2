#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/src/arrays.h"
#include "bindings/src/registrars.h"
#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/data/sampler.h"
#include "paperlab/data/tokens.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;
using OffsetArray = py::array_t<std::uint64_t, py::array::c_style>;
using Mark = std::optional<std::uint32_t>;

template <class T>
std::span<const T> span_of(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
py::array pack(const ByteArray& text, const OffsetArray& offsets, const data::Marks& marks,
               std::int64_t num_tokens) {
  py::array_t<T, py::array::c_style> tokens(num_tokens);
  const std::span<T> out(tokens.mutable_data(), static_cast<std::size_t>(num_tokens));
  const std::span<const std::uint8_t> from = span_of(text);
  const std::span<const std::uint64_t> ends = span_of(offsets);
  const py::gil_scoped_release without_gil;
  data::byte_tokens<T>(from, ends, marks, out);
  return tokens;
}

// The documents' bytes as tokens; text [bytes], offsets [D + 1].
py::array byte_tokens(const ByteArray& text, const OffsetArray& offsets, const Mark& before,
                      const Mark& after, bool is_wide) {
  const std::span<const std::uint64_t> ends = span_of(offsets);
  require<ValueError>(!ends.empty() && ends.front() <= ends.back() &&
                          ends.back() <= static_cast<std::uint64_t>(text.size()),
                      "byte_tokens", "offsets within the text", std::to_string(ends.size()));
  const std::uint64_t num_marks = (before ? 1 : 0) + (after ? 1 : 0);
  const auto num_tokens =
      static_cast<std::int64_t>(ends.back() - ends.front() + (ends.size() - 1) * num_marks);
  const data::Marks marks{before, after};
  return is_wide ? pack<std::uint16_t>(text, offsets, marks, num_tokens)
                 : pack<std::uint8_t>(text, offsets, marks, num_tokens);
}

std::unique_ptr<data::TokenFolder> open_folder(const py::bytes& path) {
  const std::string folder = path;
  const py::gil_scoped_release without_gil;
  return std::make_unique<data::TokenFolder>(folder);
}

std::unique_ptr<data::Sampler> new_sampler(const data::TokenFolder& folder,
                                           const std::vector<std::string>& domains,
                                           const std::string& split, std::int64_t length,
                                           std::uint64_t seed, bool within_documents,
                                           const std::vector<double>& weights) {
  std::vector<data::Domain> sources;
  for (const std::string& domain : domains) {
    sources.push_back({domain, folder.open(domain, split)});
  }
  return std::make_unique<data::Sampler>(
      std::move(sources), data::SamplerOptions{length, seed, within_documents, weights});
}

// Windows as int64 [B, 2]: domain and first token.
py::array to_rows(const std::vector<data::Window>& windows) {
  StepArray rows({static_cast<py::ssize_t>(windows.size()), py::ssize_t{2}});
  std::int64_t* out = rows.mutable_data();
  for (const data::Window& window : windows) {
    *out++ = window.domain;
    *out++ = window.begin;
  }
  return rows;
}

py::array windows_in_order(const data::Sampler& sampler, std::int64_t domain, std::int64_t begin,
                           std::int64_t end) {
  std::vector<data::Window> windows;
  for (std::int64_t i = begin; i < end; ++i) {
    windows.push_back(sampler.window(domain, i));
  }
  return to_rows(windows);
}

void fill(const data::Sampler& sampler, const StepArray& rows, const py::buffer& tokens) {
  require<ShapeError>(rows.ndim() == 2 && rows.shape(1) == 2, "fill", "rows of two numbers",
                      std::to_string(rows.ndim()) + " dimensions");
  std::vector<data::Window> windows;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    windows.push_back({rows.at(i, 0), rows.at(i, 1)});
  }
  const py::buffer_info info = tokens.request(/*writable=*/true);
  require<ShapeError>(
      info.itemsize == sizeof(std::int64_t) && info.ndim == 1 && info.strides[0] == info.itemsize,
      "fill", "a buffer of int64", std::to_string(info.itemsize) + " bytes each");
  const std::span<std::int64_t> out(static_cast<std::int64_t*>(info.ptr),
                                    static_cast<std::size_t>(info.size));
  const py::gil_scoped_release without_gil;
  sampler.fill(windows, out);
}

}  // namespace

void register_data(py::module_& m) {
  m.def("byte_tokens", &byte_tokens, py::arg("text"), py::arg("offsets"), py::arg("before"),
        py::arg("after"), py::arg("is_wide"));

  py::class_<data::TokenFolder>(m, "TokenFolder")
      .def(py::init(&open_folder), py::arg("path"))
      .def_property_readonly("manifest",
                             [](const data::TokenFolder& self) { return self.manifest().dump(); })
      .def(
          "check",
          [](const data::TokenFolder& self, const std::string& domain, const std::string& split) {
            self.open(domain, split);
          },
          py::arg("domain"), py::arg("split"), py::call_guard<py::gil_scoped_release>());

  using data::Sampler;
  const py::call_guard<py::gil_scoped_release> without_gil;
  py::class_<Sampler>(m, "Sampler")
      .def(py::init(&new_sampler), py::arg("folder"), py::arg("domains"), py::arg("split"),
           py::arg("length"), py::arg("seed"), py::arg("within_documents"), py::arg("weights"),
           without_gil)
      .def_property_readonly("num_windows", &Sampler::num_windows)
      .def_property_readonly("weights", &Sampler::weights)
      .def_property_readonly("num_samples", &Sampler::num_samples)
      .def_property_readonly("counts", &Sampler::counts)
      .def("windows", &windows_in_order, py::arg("domain"), py::arg("begin"), py::arg("end"))
      .def(
          "next", [](Sampler& self, std::int64_t count) { return to_rows(self.next(count)); },
          py::arg("batch_size"))
      .def(
          "seek", [](Sampler& self, std::int64_t sample) { self.seek(sample); }, py::arg("sample"),
          without_gil)
      .def("set_weights", &Sampler::set_weights, py::arg("weights"))
      .def("fill", &fill, py::arg("rows"), py::arg("tokens"))
      .def("state", [](const Sampler& self) { return self.state().dump(); })
      .def(
          "load_state",
          [](Sampler& self, const std::string& text) {
            const Json state = Json::parse(text, nullptr, /*allow_exceptions=*/false);
            require<ValueError>(!state.is_discarded(), "Sampler::load_state", "JSON",
                                text.substr(0, 60));
            self.load_state(state);
          },
          py::arg("state"));
}

}  // namespace paperlab::bindings
