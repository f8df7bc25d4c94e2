#pragma once
// What each file of this folder adds to paperlab._core.

#include <pybind11/pybind11.h>

namespace paperlab::bindings {

void register_cca(pybind11::module_& m);
void register_cca_model(pybind11::module_& m);
void register_core(pybind11::module_& m);
void register_data(pybind11::module_& m);
void register_io(pybind11::module_& m);
void register_mudd(pybind11::module_& m);
void register_mudd_model(pybind11::module_& m);
void register_nn(pybind11::module_& m);
void register_nn_encoder(pybind11::module_& m);
void register_regular_language(pybind11::module_& m);
void register_train(pybind11::module_& m);

}  // namespace paperlab::bindings
