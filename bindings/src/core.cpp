#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "bindings/src/registrars.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/version.h"
#include "paperlab/ops/backend.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

// Messages hold names of files, which need not be UTF-8.
py::object text(const char* message) {
  return py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(message));
}

void set_error(PyObject* type, const char* message) { PyErr_SetObject(type, text(message).ptr()); }

// With an error number Python chooses the subclass: FileNotFoundError, PermissionError, ...
void set_os_error(const IoError& error) {
  if (error.code() == 0) {
    set_error(PyExc_OSError, error.what());
  } else {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code(), text(error.what())).ptr());
  }
}

// A bad argument is a ValueError or TypeError, a refused file an OSError; what LibTorch throws
// besides is what its own functions raise (torch.OutOfMemoryError, torch.AcceleratorError, ...).
void translate(std::exception_ptr pointer) {
  try {
    std::rethrow_exception(std::move(pointer));
  } catch (const IoError& error) {
    set_os_error(error);
  } catch (const DTypeError& error) {
    set_error(PyExc_TypeError, error.what());
  } catch (const CudaError& error) {
    set_error(PyExc_RuntimeError, error.what());
  } catch (const Error& error) {
    set_error(PyExc_ValueError, error.what());
  } catch (const c10::TypeError& error) {
    set_error(PyExc_TypeError, error.what_without_backtrace());
  } catch (const c10::ValueError& error) {
    set_error(PyExc_ValueError, error.what_without_backtrace());
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(std::current_exception());
  } catch (const python_error&) {  // of Python code that LibTorch called: hooks, modes
    torch::translate_exception_to_python(std::current_exception());
  }
}

// Run by the interpreter's main thread between two instructions.
int warn(void* notice) {
  const std::unique_ptr<std::string> text(static_cast<std::string*>(notice));
  return PyErr_WarnEx(PyExc_UserWarning, text->c_str(), 1);
}

// Operators run without the interpreter's lock and in threads that Python does not know.
void warn_later(const std::string& notice) {
  auto text = std::make_unique<std::string>(notice);
  if (Py_IsInitialized() != 0 && Py_AddPendingCall(&warn, text.get()) == 0) {
    text.release();  // NOLINT(bugprone-unused-return-value): `warn` owns it
  } else {
    TORCH_WARN(notice);
  }
}

}  // namespace

void register_core(py::module_& m) {
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

  m.def(
      "set_backend",
      [](const std::string& name) {
        ops::set_backend(ops::backend_of_name("set_backend: name", name));
      },
      py::arg("name"));
  m.def("get_backend", [] { return ops::backend_name(ops::backend()); });
  ops::set_notice_handler(&warn_later);
}

}  // namespace paperlab::bindings
