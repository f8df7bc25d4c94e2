// Counts, masks and the streaming cache of paperlab.cca; its functions of tensors are operators.
#include <pybind11/stl.h>
#include <pybind11/typing.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "bindings/src/choice.h"
#include "bindings/src/registrars.h"
#include "paperlab/cca/attention.h"
#include "paperlab/cca/cache.h"
#include "paperlab/cca/cost.h"
#include "paperlab/cca/options.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using NoGil = py::call_guard<py::gil_scoped_release>;

const std::map<std::string, cca::Pooling> kPoolings = {{"attention", cca::Pooling::kAttention},
                                                       {"mean", cca::Pooling::kMean},
                                                       {"max", cca::Pooling::kMax}};
const std::map<std::string, cca::Boundary> kBoundaries = {
    {"exact", cca::Boundary::kExact},
    {"paper_equation", cca::Boundary::kPaperEquation},
    {"triton_truncation", cca::Boundary::kTritonTruncation}};
const std::map<std::string, cca::WeightsPer> kWeightsPer = {
    {"query_head", cca::WeightsPer::kQueryHead}, {"kv_head", cca::WeightsPer::kKvHead}};

cca::Options options(const std::string& function, std::int64_t group_size, std::int64_t window,
                     const std::string& pooling, const std::string& boundary,
                     const std::string& weights_per, std::int64_t keep_first) {
  const char* name = function.c_str();
  const cca::Options made{group_size,
                          window,
                          choice(kPoolings, name, "pooling", pooling),
                          choice(kBoundaries, name, "boundary", boundary),
                          choice(kWeightsPer, name, "weights_per", weights_per),
                          keep_first};
  cca::validate(name, made);
  return made;
}

using State = std::tuple<std::int64_t, std::int64_t, int, int, int, std::int64_t>;  // pickled

using Counts = py::typing::Dict<py::str, py::int_>;

Counts cost(std::int64_t length, const cca::Options& given, std::int64_t heads,
            std::int64_t kv_heads, std::int64_t head_dim, std::int64_t layers,
            std::int64_t bytes_per_element) {
  const cca::Cost counted =
      cca::cost(length, given, {heads, kv_heads, head_dim, layers, bytes_per_element});
  Counts result;
  result["core_pairs"] = counted.core_pairs;
  result["local_pairs"] = counted.local_pairs;
  result["pairs"] = counted.pairs;
  result["full_pairs"] = counted.full_pairs;
  result["flops"] = counted.flops;
  result["full_flops"] = counted.full_flops;
  result["cache_vectors"] = counted.cache_vectors;
  result["cache_bytes"] = counted.cache_bytes;
  result["full_cache_bytes"] = counted.full_cache_bytes;
  return result;
}

}  // namespace

void register_cca(py::module_& m) {
  py::class_<cca::Options>(m, "CcaOptions")
      .def_readonly("group_size", &cca::Options::group_size)
      .def_readonly("window", &cca::Options::window)
      .def_readonly("keep_first", &cca::Options::keep_first)
      .def(py::pickle(
          [](const cca::Options& given) {
            return State(given.group_size, given.window, static_cast<int>(given.pooling),
                         static_cast<int>(given.boundary), static_cast<int>(given.weights_per),
                         given.keep_first);
          },
          [](const State& state) {
            const auto& [group_size, window, pooling, boundary, weights_per, keep_first] = state;
            const cca::Options made{group_size,
                                    window,
                                    static_cast<cca::Pooling>(pooling),
                                    static_cast<cca::Boundary>(boundary),
                                    static_cast<cca::WeightsPer>(weights_per),
                                    keep_first};
            cca::validate("CcaOptions", made);
            return made;
          }));
  m.def("cca_options", &options, py::arg("function"), py::arg("group_size"), py::arg("window"),
        py::arg("pooling"), py::arg("boundary"), py::arg("weights_per"), py::arg("keep_first"));
  m.def("cca_cost", &cost, py::arg("length"), py::arg("options"), py::arg("heads"),
        py::arg("kv_heads"), py::arg("head_dim"), py::arg("layers"), py::arg("bytes_per_element"));
  m.def("cca_mask", &cca::mask, py::arg("length"), py::arg("options"), NoGil());
  py::class_<cca::KvCache>(m, "CcaKvCache")
      .def(py::init([](const cca::Options& given) { return cca::KvCache(given); }),
           py::arg("options"))
      .def(
          "prefill",
          [](cca::KvCache& self, const at::Tensor& query, const at::Tensor& key,
             const at::Tensor& value) { return self.prefill(query, key, value); },
          py::arg("query"), py::arg("key"), py::arg("value"), NoGil())
      .def("step", &cca::KvCache::step, py::arg("query"), py::arg("key"), py::arg("value"), NoGil())
      .def("reset", &cca::KvCache::reset)
      .def_property_readonly("length", &cca::KvCache::length)
      .def_property_readonly("stored_vectors", &cca::KvCache::stored_vectors)
      .def_property_readonly("num_bytes", &cca::KvCache::num_bytes);
}

}  // namespace paperlab::bindings
