#include "bindings/src/registrars.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of paperlab; the modules of paperlab are its typed face.";
  paperlab::bindings::register_core(m);
  paperlab::bindings::register_cca(m);
  paperlab::bindings::register_data(m);
  paperlab::bindings::register_io(m);
  paperlab::bindings::register_mudd(m);
  paperlab::bindings::register_nn(m);
  paperlab::bindings::register_nn_encoder(m);
  paperlab::bindings::register_cca_model(m);
  paperlab::bindings::register_mudd_model(m);
  paperlab::bindings::register_regular_language(m);
  paperlab::bindings::register_train(m);
}
