#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "experiments/cca/rows.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/device.h"

namespace paperlab::experiments::cca {
namespace {

void check(bool holds, const std::string& required, const std::string& got) {
  require<ValueError>(holds, "cca", required.c_str(), got);
}

template <class T>
std::string text_of(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) {
    text += (text.empty() ? "" : ", ") + std::to_string(value);
  }
  return text.empty() ? "none" : text;
}

// Not empty, ascending, from `low` on.
void check_ascending(const char* name, const std::vector<std::int64_t>& values, std::int64_t low) {
  const bool is_ascending =
      std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) == values.end();
  check(!values.empty() && is_ascending && values.front() >= low,
        std::string(name) + " must ascend from " + std::to_string(low) + " or more",
        text_of(values));
}

// Ends of buckets: 0 ... length.
void check_buckets(const char* name, const std::vector<std::int64_t>& ends, std::int64_t length,
                   std::size_t least) {
  check_ascending(name, ends, 0);
  check(ends.size() > least && ends.front() == 0 && ends.back() == length,
        std::string(name) + " must be " + std::to_string(least + 1) +
            " or more numbers from 0 to " + std::to_string(length),
        text_of(ends));
}

void check_corpora(const std::vector<std::string>& names) {
  std::set<std::string> domains;
  for (const std::string& name : names) {
    const Corpus corpus = Corpus::of_name(name);
    check(corpus.model.empty() && !corpus.domains.empty() && corpus.name() == name,
          "text_corpora must name texts and their domains, such as code:c,python", name);
    for (const std::string& domain : corpus.domains) {
      check(domains.insert(domain).second, "text_corpora must name each domain once", domain);
    }
  }
  check(!domains.empty(), "text_corpora must name at least one", "none");
}

void check_seeds(const char* name, std::vector<std::uint64_t> seeds) {
  std::sort(seeds.begin(), seeds.end());
  check(!seeds.empty() && std::adjacent_find(seeds.begin(), seeds.end()) == seeds.end(),
        std::string(name) + " must be different numbers", text_of(seeds));
}

}  // namespace

void Config::validate() const {
  for (const auto& [name, value] : {std::pair("group_size", group_size),
                                    std::pair("recall_steps", recall_steps),
                                    std::pair("recall_batch", recall_batch),
                                    std::pair("recall_window", recall_window),
                                    std::pair("recall_sequences", recall_sequences),
                                    std::pair("text_layers", text_layers),
                                    std::pair("text_heads", text_heads),
                                    std::pair("text_batch", text_batch),
                                    std::pair("text_steps", text_steps),
                                    std::pair("text_tune_steps", text_tune_steps),
                                    std::pair("text_group", text_group),
                                    std::pair("text_windows", text_windows),
                                    std::pair("text_contexts", text_contexts),
                                    std::pair("pages", pages),
                                    std::pair("page_tune_steps", page_tune_steps),
                                    std::pair("page_tune_length", page_tune_length),
                                    std::pair("page_tune_group", page_tune_group),
                                    std::pair("speed_heads", speed_heads),
                                    std::pair("speed_layers", speed_layers),
                                    std::pair("speed_ffn", speed_ffn),
                                    std::pair("speed_vocab", speed_vocab),
                                    std::pair("speed_tokens", speed_tokens),
                                    std::pair("speed_repetitions", speed_repetitions)}) {
    check(value >= 1, std::string(name) + " must be >= 1", std::to_string(value));
  }
  check(window >= 0, "window must be >= 0", std::to_string(window));
  check(long_pages >= 0, "long_pages must be >= 0", std::to_string(long_pages));
  check(recall_window >= 5 && text_window >= 5 && page_window >= 5,
        "windows must be >= 5: 4 sinks and a token", "others");
  check(recall_width >= 4 && recall_width % 4 == 0, "recall_width must be a multiple of 4",
        std::to_string(recall_width));
  check(text_width % (2 * text_heads) == 0 && text_width >= 1,
        "text_width must be a multiple of 2 text_heads", std::to_string(text_width));
  check(!domains.empty(), "domains must name at least one", "none");
  check_corpora(text_corpora);
  check(device == "cpu" || device == "cuda", "device must be cpu or cuda", device);
  check(std::isfinite(step_s) && step_s >= 0.0, "step_s must be finite and >= 0",
        std::to_string(step_s));
  check(device == "cpu" || step_s > 0.0, "step_s must be > 0 where the device is cuda",
        std::to_string(step_s));
  check(dtype == "float32" || dtype == "float64", "dtype must be float32 or float64", dtype);
  check(speed_dtype == "float32" || speed_dtype == "float64" || speed_dtype == "bfloat16",
        "speed_dtype must be float32, float64 or bfloat16", speed_dtype);
  check_seeds("recall_seeds", recall_seeds);
  check_seeds("text_seeds", text_seeds);
  check_ascending("cache_lengths", cache_lengths, 1);
  check_ascending("speed_lengths", speed_lengths, 1);
  check(speed_head_dim >= 2 && speed_head_dim % 2 == 0, "speed_head_dim must be even",
        std::to_string(speed_head_dim));
  check_ascending("recall_tune_steps", recall_tune_steps, 1);
  check_ascending("recall_groups", recall_groups, 1);
  check_ascending("recall_lengths", recall_lengths, 64);
  check_ascending("text_grid_groups", text_grid_groups, 1);
  check_ascending("text_grid_windows", text_grid_windows, 0);
  check(recall_length >= 64 && recall_length % 4 == 0, "recall_length must be 64 or more in fours",
        std::to_string(recall_length));
  check(!page_groups.empty(), "page_groups must name at least one", "none");
  check_buckets("text_buckets", text_buckets, text_length, 1);
  check_buckets("page_buckets", page_buckets, page_length, 2);
  check_buckets("long_buckets", long_buckets, long_length, 1);
  ops::require_device(at::Device(device));
}

}  // namespace paperlab::experiments::cca
