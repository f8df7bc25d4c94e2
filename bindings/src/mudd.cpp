// The counting of paperlab.mudd.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <optional>

#include "bindings/src/registrars.h"
#include "paperlab/mudd/complexity.h"
#include "paperlab/mudd/config.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

using Counts = py::typing::Dict<py::str, py::typing::Union<py::int_, py::float_>>;

Counts complexity(std::int64_t num_layers, std::int64_t d_model, std::int64_t seq_len,
                  std::optional<std::int64_t> num_heads) {
  const mudd::Complexity counted = mudd::complexity(num_layers, d_model, seq_len, num_heads);
  Counts result;
  result["eta"] = counted.eta;
  result["rho"] = counted.rho;
  result["param_ratio"] = counted.param_ratio;
  result["flop_ratio"] = counted.flop_ratio;
  result["sum_hidden"] = counted.sum_hidden;
  result["sum_hidden_squared"] = counted.sum_hidden_squared;
  result["extra_params"] = counted.extra_params;
  result["base_params"] = counted.base_params;
  result["extra_flops"] = counted.extra_flops;
  result["base_flops"] = counted.base_flops;
  result["generator_params"] = counted.generator_params;
  result["generator_params_released"] = counted.generator_params_released;
  if (num_heads) {
    result["memory_ratio_denseformer"] = *counted.memory_ratio_denseformer;
    result["memory_ratio_mudd"] = *counted.memory_ratio_mudd;
  }
  return result;
}

}  // namespace

void register_mudd(py::module_& m) {
  m.def("mudd_complexity", &complexity, py::arg("num_layers"), py::arg("d_model"),
        py::arg("seq_len"), py::arg("num_heads"));
  m.def("reallocated_ffn_dims", &mudd::reallocated_ffn_dims, py::arg("d_ff"), py::arg("num_layers"),
        py::arg("round_to"));
}

}  // namespace paperlab::bindings
