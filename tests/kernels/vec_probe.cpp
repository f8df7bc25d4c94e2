// Compiled once per instruction set, like a kernel's cpu.cpp.
#include "tests/kernels/vec_probe.h"

#include "kernels/common/vec_math.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

void probe_exp(const double* x, double* y) { store(y, exp(load(x))); }
void probe_fma(const double* a, const double* b, const double* c, double* y) {
  store(y, fma(load(a), load(b), load(c)));
}
void probe_select(std::uint8_t lanes, const double* a, const double* b, double* y) {
  store(y, select(lanes, load(a), load(b)));
}
std::uint8_t probe_greater(const double* a, const double* b) { return greater(load(a), load(b)); }
std::uint8_t probe_unordered(const double* a) { return unordered(load(a)); }
void probe_add_exponent(const double* a, const double* n, double* y) {
  store(y, add_exponent(load(a), load(n)));
}
void probe_add(const double* a, const double* b, double* y) { store(y, load(a) + load(b)); }
void probe_subtract(const double* a, const double* b, double* y) { store(y, load(a) - load(b)); }
void probe_multiply(const double* a, const double* b, double* y) { store(y, load(a) * load(b)); }
void probe_divide(const double* a, const double* b, double* y) { store(y, load(a) / load(b)); }
double probe_sum(const double* a) { return sum(load(a)); }

}  // namespace

VecProbe vec_probe() {
  return {probe_exp,       probe_fma,          probe_select, probe_greater,
          probe_unordered, probe_add_exponent, probe_add,    probe_subtract,
          probe_multiply,  probe_divide,       probe_sum};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
