#pragma once
// Running a test under each instruction set of the kernels that this CPU has.

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "paperlab/core/cpu_isa.h"

namespace paperlab {

inline void PrintTo(CpuIsa isa, std::ostream* out) { *out << cpu_isa_name(isa); }

namespace test {

inline const std::vector<CpuIsa>& all_isas() {
  static const std::vector<CpuIsa> isas = {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512};
  return isas;
}

inline bool is_available(CpuIsa isa) { return isa <= detected_cpu_isa(); }

// Why a test of `isa` cannot run here.
inline std::string missing(CpuIsa isa) {
  return std::string("this CPU has no ") + cpu_isa_name(isa) + ", only " +
         cpu_isa_name(detected_cpu_isa());
}

// Uses `isa` while in scope.
class ScopedIsa {
 public:
  explicit ScopedIsa(CpuIsa isa) : before_(cpu_isa()) { set_cpu_isa(cpu_isa_name(isa)); }
  ~ScopedIsa() { set_cpu_isa(cpu_isa_name(before_)); }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;

 private:
  CpuIsa before_;
};

inline std::string isa_name(const testing::TestParamInfo<CpuIsa>& info) {
  return cpu_isa_name(info.param);
}

}  // namespace test
}  // namespace paperlab
