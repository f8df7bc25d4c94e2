#include "bench/support/machine.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

#include "bench/support/fma_probe.h"
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

double fma_roof_gflops(CpuIsa isa) {
  const auto rounds = isa == CpuIsa::kAvx512 ? avx512::fma_rounds
                      : isa == CpuIsa::kAvx2 ? avx2::fma_rounds
                                             : generic::fma_rounds;
  std::vector<double> start(kNumStart);
  std::iota(start.begin(), start.end(), 1.0);
  volatile double kept = 0.0;
  std::vector<double> rates;
  long count = 1000;
  for (int run = 0; run < 12; ++run) {
    double sink = 0.0;
    const auto begin = std::chrono::steady_clock::now();
    const double flops = rounds(count, start.data(), &sink);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    kept = sink;
    if (passed.count() < 5e-3) {
      count *= 4;
    } else {
      rates.push_back(flops / passed.count() * 1e-9);
    }
  }
  return kept == 0.0 || rates.empty() ? 0.0 : *std::max_element(rates.begin(), rates.end());
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
