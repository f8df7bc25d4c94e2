#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/src/registrars.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/io/safetensors.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

// Paths come from os.fsencode(): a file's name need not be UTF-8. This module knows no tensors:
// they come as buffers of their bytes.
using Spec = std::tuple<std::string, std::string, std::vector<std::int64_t>>;  // name, type, shape

std::span<std::byte> bytes_of(const py::buffer& buffer, bool is_writable) {
  const py::buffer_info info = buffer.request(is_writable);
  const bool is_plain = info.ndim == 1 && info.itemsize == 1 && info.strides[0] == 1;
  require<ShapeError>(is_plain, "io", "a buffer of bytes",
                      std::to_string(info.ndim) + " dimensions");
  return {static_cast<std::byte*>(info.ptr), static_cast<std::size_t>(info.size)};
}

std::unique_ptr<io::SafetensorsFile> open_file(const py::bytes& path) {
  const std::string file = path;
  const py::gil_scoped_release without_gil;
  return std::make_unique<io::SafetensorsFile>(file);
}

std::vector<Spec> tensors_of(const io::SafetensorsFile& file) {
  std::vector<Spec> specs;
  for (const io::TensorEntry& tensor : file.tensors()) {
    specs.emplace_back(tensor.name, io::element_type_name(tensor.type), tensor.shape);
  }
  return specs;
}

void read_into(const io::SafetensorsFile& file,
               const std::vector<std::pair<std::string, py::buffer>>& targets) {
  std::vector<io::ReadRange> ranges;
  for (const auto& [name, buffer] : targets) {
    const std::span<std::byte> bytes = bytes_of(buffer, /*is_writable=*/true);
    const io::TensorEntry& tensor = file.at(name);
    require<ShapeError>(bytes.size() == tensor.num_bytes, "read_into",
                        std::to_string(tensor.num_bytes) + " bytes", std::to_string(bytes.size()));
    ranges.push_back({tensor.offset, bytes.size(), bytes.data()});
  }
  const py::gil_scoped_release without_gil;
  file.file().read(ranges, *default_executor());
}

// The bytes of a tensor from `begin` on, as many as the buffer holds.
void read_range(const io::SafetensorsFile& file, const std::string& name, std::uint64_t begin,
                const py::buffer& buffer) {
  const std::span<std::byte> bytes = bytes_of(buffer, /*is_writable=*/true);
  const io::TensorEntry& tensor = file.at(name);
  require<ShapeError>(begin <= tensor.num_bytes && bytes.size() <= tensor.num_bytes - begin,
                      "read_range", "a part of " + std::to_string(tensor.num_bytes) + " bytes",
                      std::to_string(bytes.size()) + " from " + std::to_string(begin));
  const py::gil_scoped_release without_gil;
  file.file().read({tensor.offset + begin, bytes.size(), bytes.data()});
}

std::vector<io::TensorSpec> to_specs(const std::vector<Spec>& specs) {
  std::vector<io::TensorSpec> tensors;
  for (const auto& [name, type, shape] : specs) {
    const std::optional<io::ElementType> element = io::find_element_type(type);
    if (!element) {
      throw DTypeError("save_file: types are " + io::element_type_names() + ", got " + type);
    }
    tensors.push_back({name, *element, shape});
  }
  return tensors;
}

std::unique_ptr<io::SafetensorsWriter> new_writer(const py::bytes& path,
                                                  const std::vector<Spec>& specs,
                                                  const std::optional<io::Metadata>& metadata) {
  std::vector<io::TensorSpec> tensors = to_specs(specs);
  const std::string file = path;
  const py::gil_scoped_release without_gil;
  return std::make_unique<io::SafetensorsWriter>(file, std::move(tensors), metadata);
}

std::unique_ptr<io::CheckpointWriter> new_checkpoint(const py::bytes& directory,
                                                     const std::vector<Spec>& specs,
                                                     const std::optional<io::Metadata>& metadata,
                                                     std::uint64_t max_shard_bytes) {
  std::vector<io::TensorSpec> tensors = to_specs(specs);
  const std::string folder = directory;
  const py::gil_scoped_release without_gil;
  return std::make_unique<io::CheckpointWriter>(folder, std::move(tensors), metadata,
                                                max_shard_bytes);
}

template <class Writer>
void append(Writer& writer, const std::string& name, const py::buffer& data) {
  const std::span<std::byte> bytes = bytes_of(data, /*is_writable=*/false);
  const py::gil_scoped_release without_gil;
  writer.append(name, bytes.data(), bytes.size());
}

template <class Writer>
std::vector<std::string> names_of(const Writer& writer) {
  std::vector<std::string> names;
  for (const io::TensorEntry& tensor : writer.tensors()) {
    names.push_back(tensor.name);
  }
  return names;
}

}  // namespace

void register_io(py::module_& m) {
  py::class_<io::SafetensorsFile>(m, "SafetensorsFile")
      .def(py::init(&open_file), py::arg("path"))
      .def_property_readonly("tensors", &tensors_of)
      .def_property_readonly("metadata", &io::SafetensorsFile::metadata)
      .def("read_into", &read_into, py::arg("targets"))
      .def("read_range", &read_range, py::arg("name"), py::arg("begin"), py::arg("buffer"));

  py::class_<io::SafetensorsWriter>(m, "SafetensorsWriter")
      .def(py::init(&new_writer), py::arg("path"), py::arg("tensors"), py::arg("metadata"))
      .def_property_readonly("names", &names_of<io::SafetensorsWriter>)
      .def("append", &append<io::SafetensorsWriter>, py::arg("name"), py::arg("data"))
      .def("discard", &io::SafetensorsWriter::discard)
      .def("finish", &io::SafetensorsWriter::finish, py::call_guard<py::gil_scoped_release>());

  py::class_<io::CheckpointWriter>(m, "CheckpointWriter")
      .def(py::init(&new_checkpoint), py::arg("directory"), py::arg("tensors"), py::arg("metadata"),
           py::arg("max_shard_bytes") = io::kMaxShardBytes)
      .def_property_readonly("names", &names_of<io::CheckpointWriter>)
      .def("append", &append<io::CheckpointWriter>, py::arg("name"), py::arg("data"))
      .def("finish", &io::CheckpointWriter::finish, py::call_guard<py::gil_scoped_release>());
}

}  // namespace paperlab::bindings
