#include "bench/support/ratio_bench.h"

#include <malloc.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <thread>

#include "bench/support/machine.h"
#include "paperlab/core/cpu_isa.h"

namespace paperlab::bench {
namespace {

[[noreturn]] void usage(const char* program) {
  std::fprintf(stderr,
               "%s: usage: --out FILE [--machine NAME] [--repetitions N] [--threads N] "
               "[--isa auto|avx512|avx2|generic] [--only TEXT] [--quick]\n",
               program);
  std::exit(2);
}

RatioArguments parse(int argc, char** argv) {
  RatioArguments arguments;
  const std::map<std::string, std::string*> texts = {{"--out", &arguments.out},
                                                     {"--machine", &arguments.machine},
                                                     {"--isa", &arguments.isa},
                                                     {"--only", &arguments.only}};
  const std::map<std::string, int*> numbers = {{"--repetitions", &arguments.num_repetitions},
                                               {"--threads", &arguments.num_threads}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto text = texts.find(name);
    const auto number = numbers.find(name);
    if (name == "--quick") {
      arguments.is_quick = true;
    } else if (i + 1 < argc && text != texts.end()) {
      *text->second = argv[++i];
    } else if (i + 1 < argc && number != numbers.end()) {
      *number->second =
          static_cast<int>(std::clamp(std::strtol(argv[++i], nullptr, 10), 1L, 1000L));
    } else {
      usage(argv[0]);
    }
  }
  return arguments;
}

int bench(const RatioArguments& arguments, const Measure& measure) {
  // Freed memory is kept, so that LibTorch's results don't cost page faults at each call.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  set_cpu_isa(arguments.isa);
  Json result = describe_machine(arguments.machine);
  std::printf("%s; ours with %s\n", result["cpu"].get<std::string>().c_str(),
              cpu_isa_name(cpu_isa()));
  const std::vector<RatioRow> rows = measure(arguments, result);
  int num_missed = 0;
  bool is_wrong = false;
  result["rows"] = Json::array();
  for (const RatioRow& row : rows) {
    result["rows"].push_back(json_of(row));
    is_wrong = is_wrong || !row.wrong.empty();
    num_missed += row.wrong.empty() && row.is_missed() ? 1 : 0;
  }
  result.emplace("claims", Json::object());  // unless measure() has some
  std::printf("%s\n%zu rows, %d missed a target\n", result["note"].get<std::string>().c_str(),
              rows.size(), num_missed);
  if (!arguments.out.empty()) {
    write_json(arguments.out, result);
    std::printf("%s\n", arguments.out.c_str());
  }
  return is_wrong ? 1 : 0;
}

}  // namespace

bool RatioArguments::wants(const RatioRow& row, bool is_small) const {
  const bool is_named = (row.table + ": " + row.name).find(only) != std::string::npos;
  return is_named && (!is_quick || is_small);
}

std::vector<int> RatioArguments::thread_counts() const {
  if (num_threads > 0) {
    return {num_threads};
  }
  return std::thread::hardware_concurrency() < 2 ? std::vector<int>{1} : std::vector<int>{1, 2};
}

std::string threads_text(int num_threads) {
  return std::to_string(num_threads) + (num_threads == 1 ? " thread" : " threads");
}

void add_row(const RatioRow& row, std::vector<RatioRow>& rows) {
  if (rows.empty() || rows.back().table != row.table) {
    std::printf("%s\n", row.table.c_str());
  }
  print(row);
  rows.push_back(row);
}

int run_ratio_bench(int argc, char** argv, const Measure& measure) {
  try {
    return bench(parse(argc, argv), measure);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}

}  // namespace paperlab::bench
