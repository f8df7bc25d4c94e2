#include "bench/support/machine.h"

#include <cctype>
#include <ctime>
#include <thread>

#include "bench/support/roofs.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/version.h"

namespace paperlab::bench {
namespace {

unsigned num_cpus() { return std::thread::hardware_concurrency(); }

// Lower-case letters and digits, all else as single hyphens.
std::string slug(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  return out.substr(0, out.find_last_not_of('-') + 1);
}

}  // namespace

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", &parts);
  return text;
}

Json describe_machine(const std::string& name) {
  const std::string cpu = cpu_model();
  Json roofs = Json::object();
  for (const CpuIsa isa : {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= detected_cpu_isa()) {
      roofs[cpu_isa_name(isa)] = json_number(fma_roof_gflops(isa));
    }
  }
  return {{"machine", name.empty() ? slug(cpu) + "-" + std::to_string(num_cpus()) + "-cpus" : name},
          {"cpu", cpu},
          {"cpus", num_cpus()},
          {"isa", cpu_isa_name(cpu_isa())},
          {"commit", build_info().commit},
          {"compiler", build_info().compiler},
          {"torch", build_info().torch},
          {"date", today()},
          {"fma_roof_gflops", roofs[cpu_isa_name(cpu_isa())]},
          {"fma_roofs_gflops", roofs}};
}

}  // namespace paperlab::bench
