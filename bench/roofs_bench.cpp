// roofs_bench --out FILE [--machine NAME]
//
// What the machine can do: fused multiply-adds of one thread, by type, and reads from memory with
// one and two threads. Prints them and writes them as JSON; other benchmarks run it for theirs.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/machine.h"
#include "bench/support/roofs.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"

namespace paperlab::bench {
namespace {

constexpr std::size_t kAlignment = 64;

// The best read rates in GB/s by threads, over eight times the last-level cache.
Json read_roofs() {
  const std::size_t bytes = 8 * last_level_cache_bytes();
  std::vector<float> memory(bytes / sizeof(float) + kAlignment, 1.0F);
  void* begin = memory.data();
  std::size_t space = memory.size() * sizeof(float);
  begin = std::align(kAlignment, bytes, begin, space);
  Json roofs = Json::object();
  for (int threads = 1; threads <= 2; ++threads) {
    if (threads <= static_cast<int>(std::thread::hardware_concurrency())) {
      const ThreadPool pool(threads);
      roofs[std::to_string(threads)] = json_number(read_roof(pool, begin, bytes).gb_s);
    }
  }
  return roofs;
}

int measure(const std::string& out, const std::string& machine) {
  Json result = describe_machine(machine);
  result["float32_roof_gflops"] = json_number(fma_roof_float32_gflops(cpu_isa()));
  result["bfloat16_roof_gflops"] = json_number(dot_roof_bfloat16_gflops());
  result["read_roofs_gb_s"] = read_roofs();
  std::fputs(format_json(result).c_str(), stdout);
  if (!out.empty()) {
    write_json(out, result);
  }
  return 0;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  std::string out;
  std::string machine;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc || (name != "--out" && name != "--machine")) {
      std::fprintf(stderr, "%s: usage: --out FILE [--machine NAME]\n", argv[0]);
      return 2;
    }
    (name == "--out" ? out : machine) = argv[++i];
  }
  try {
    return paperlab::bench::measure(out, machine);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "roofs_bench: %s\n", error.what());
    return 1;
  }
}
