#include "paperlab/cca/options.h"

#include "paperlab/core/error.h"

namespace paperlab::cca {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 60;  // sums of a few of them fit 63 bits

std::string range_problem(const char* name, std::int64_t value, std::int64_t low) {
  if (value >= low && value <= kMaxSize) {
    return "";
  }
  return std::string(name) + " must be in " + std::to_string(low) + ".." +
         std::to_string(kMaxSize) + ", got " + std::to_string(value);
}

std::string choice_problem(const char* name, std::uint8_t value, std::uint8_t last) {
  if (value <= last) {
    return "";
  }
  return std::string(name) + " must be a value of its enumeration, got " + std::to_string(value);
}

}  // namespace

std::string problem_of(const Options& options) {
  for (const std::string& problem :
       {range_problem("group_size", options.group_size, 1),
        range_problem("window", options.window, 0),
        range_problem("keep_first", options.keep_first, 0),
        choice_problem("pooling", static_cast<std::uint8_t>(options.pooling),
                       static_cast<std::uint8_t>(Pooling::kMax)),
        choice_problem("boundary", static_cast<std::uint8_t>(options.boundary),
                       static_cast<std::uint8_t>(Boundary::kTritonTruncation)),
        choice_problem("weights_per", static_cast<std::uint8_t>(options.weights_per),
                       static_cast<std::uint8_t>(WeightsPer::kKvHead))}) {
    if (!problem.empty()) {
      return problem;
    }
  }
  if (options.boundary == Boundary::kTritonTruncation && options.window % options.group_size != 0) {
    return "window must be a multiple of group_size (" + std::to_string(options.group_size) +
           ") with triton_truncation, got " + std::to_string(options.window);
  }
  return "";
}

void validate(const char* function, const Options& options) {
  const std::string problem = problem_of(options);
  if (!problem.empty()) {
    throw ValueError(std::string(function) + ": " + problem);
  }
}

}  // namespace paperlab::cca
