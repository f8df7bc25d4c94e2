#include <exception>
#include <utility>

#include "bindings/src/registrars.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/version.h"

namespace paperlab::bindings {
namespace {

// A bad argument is a ValueError or TypeError, a refused file an OSError; CudaError stays what
// std::runtime_error becomes.
void translate(std::exception_ptr pointer) {
  try {
    std::rethrow_exception(std::move(pointer));
  } catch (const IoError& error) {
    PyErr_SetString(PyExc_OSError, error.what());
  } catch (const DTypeError& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const CudaError& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (const Error& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
}

}  // namespace

void register_core(pybind11::module_& m) {
  namespace py = pybind11;
  py::register_local_exception_translator(translate);

  py::class_<BuildInfo>(m, "BuildInfo")
      .def_readonly("version", &BuildInfo::version)
      .def_readonly("commit", &BuildInfo::commit)
      .def_readonly("compiler", &BuildInfo::compiler)
      .def_readonly("flags", &BuildInfo::flags)
      .def_readonly("torch", &BuildInfo::torch)
      .def_readonly("cuda", &BuildInfo::cuda);
  m.def("build_info", &build_info, py::return_value_policy::reference);

  m.def("cpu_isa", [] { return cpu_isa_name(cpu_isa()); });
  m.def("detected_cpu_isa", [] { return cpu_isa_name(detected_cpu_isa()); });
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));

  const py::call_guard<py::gil_scoped_release> without_gil;
  m.def("set_num_threads", &set_num_threads, py::arg("num_threads"), without_gil);
  m.def("get_num_threads", &get_num_threads, without_gil);
}

}  // namespace paperlab::bindings
