#include "paperlab/core/cpu_isa.h"

#include <atomic>
#include <fstream>

#include "paperlab/core/error.h"

namespace paperlab {
namespace {

std::atomic<CpuIsa>& current() {
  static std::atomic<CpuIsa> isa = detected_cpu_isa();
  return isa;
}

}  // namespace

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

CpuIsa detected_cpu_isa() {
  // GCC's probes include the operating system's support for the registers (XGETBV).
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512bw") != 0) {
    return CpuIsa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) {
    return CpuIsa::kAvx2;
  }
  return CpuIsa::kGeneric;
}

CpuIsa cpu_isa() { return current().load(std::memory_order_relaxed); }

bool cpu_has_bfloat16() {
  static const bool is_detected = __builtin_cpu_supports("avx512bf16") != 0;
  return is_detected && cpu_isa() == CpuIsa::kAvx512;
}

void set_cpu_isa(const std::string& name) {
  if (name == "auto") {
    current() = detected_cpu_isa();
    return;
  }
  for (const CpuIsa isa : {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (name != cpu_isa_name(isa)) {
      continue;
    }
    require<UnsupportedError>(isa <= detected_cpu_isa(), "set_cpu_isa",
                              "name must be an instruction set of this CPU (up to " +
                                  std::string(cpu_isa_name(detected_cpu_isa())) + ")",
                              name);
    current() = isa;
    return;
  }
  throw ValueError("set_cpu_isa: name must be generic, avx2, avx512 or auto, got " + name);
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kGeneric:
      break;
  }
  return "generic";
}

}  // namespace paperlab
