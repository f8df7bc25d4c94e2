// main() of the kernels' benchmarks: --out FILE is Google Benchmark's JSON, with the commit in it.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/version.h"

int main(int argc, char** argv) {
  std::vector<std::string> texts = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--out" && i + 1 < argc) {
      texts.push_back("--benchmark_out=" + std::string(argv[++i]));
      texts.emplace_back("--benchmark_out_format=json");
    } else {
      texts.emplace_back(argv[i]);
    }
  }
  std::vector<char*> arguments;
  arguments.reserve(texts.size());
  for (std::string& text : texts) {
    arguments.push_back(text.data());
  }
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) {
    return 2;
  }
  benchmark::AddCustomContext("commit", paperlab::build_info().commit);
  benchmark::AddCustomContext("isa", paperlab::cpu_isa_name(paperlab::detected_cpu_isa()));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
