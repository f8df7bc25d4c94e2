#include "bench/support/ratio_row.h"

#include <algorithm>
#include <cstdio>

namespace paperlab::bench {
namespace {

constexpr double kNoisyPercent = 20.0;

double gflops(const RatioRow& row, const Timing& timing) {
  return row.flops / timing.median_us * 1e-3;
}

double gb_s(const RatioRow& row) { return row.bytes / row.ours.median_us * 1e-3; }

Json band(const Timing& timing) {
  return {json_number(timing.low_us), json_number(timing.high_us)};
}

}  // namespace

double RatioRow::share_of_roof() const {
  return bytes > 0.0 ? gb_s(*this) / memory_roof_gb_s : gflops(*this, ours) / fma_roof_gflops;
}

double RatioRow::spread_percent() const {
  double spread = 0.0;
  for (const Timing* timing : {&ours, &baseline, &other, &read_probe}) {
    spread = timing->median_us > 0.0 ? std::max(spread, timing->spread_percent()) : spread;
  }
  return spread;
}

bool RatioRow::is_noisy() const { return spread_percent() > kNoisyPercent; }

bool RatioRow::is_missed() const {
  const bool is_fast = ratio() >= target && (other_name.empty() || other_ratio() >= other_target) &&
                       (share_target == 0.0 || share_of_roof() >= share_target);
  return !is_fast;  // also where a number is not finite
}

Json json_of(const RatioRow& row) {
  Json json = {{"table", row.table},
               {"case", row.name},
               {"threads", row.num_threads},
               {"target", json_number(row.target)}};
  if (!row.wrong.empty()) {
    json["case"] = row.name + ": wrong, not timed";
    json["wrong"] = row.wrong;
    return json;
  }
  json["ours_us"] = json_number(row.ours.median_us);
  json["ours_band_us"] = band(row.ours);
  json["ours_cpu_us"] = json_number(row.ours.cpu_us);
  json["baseline_us"] = json_number(row.baseline.median_us);
  json["baseline_band_us"] = band(row.baseline);
  json["baseline_cpu_us"] = json_number(row.baseline.cpu_us);
  json["baseline_backend"] = row.backend;
  json["repetitions"] = row.ours.num_repetitions;
  json["ratio"] = json_number(row.ratio());
  json["cpu_ratio"] = json_number(row.baseline.cpu_us / row.ours.cpu_us);
  if (!row.other_name.empty()) {
    json["other"] = row.other_name;
    json["other_us"] = json_number(row.other.median_us);
    json["other_ratio"] = json_number(row.other_ratio());
    if (row.other_target != 1.0) {
      json["other_target"] = json_number(row.other_target);
    }
  }
  if (row.bytes > 0.0) {
    json["gb_s"] = json_number(gb_s(row));
    json[row.memory_roof + "_roof_gb_s"] = json_number(row.memory_roof_gb_s);
    json["share_of_" + row.memory_roof + "_roof"] = json_number(row.share_of_roof());
  } else {
    json["gflops"] = json_number(gflops(row, row.ours));
    json["baseline_gflops"] = json_number(gflops(row, row.baseline));
    json["share_of_fma_roof"] = json_number(row.share_of_roof());
  }
  if (row.share_target > 0.0) {
    json["share_target"] = json_number(row.share_target);
  }
  for (const auto& [name, share] : row.shares) {
    json["shares"][name] = json_number(share);
  }
  for (const auto& [name, number] : row.numbers) {
    json[name] = json_number(number);
  }
  json["spread_percent"] = json_number(row.spread_percent());
  json["noisy"] = row.is_noisy();
  json["missed"] = row.is_missed();
  return json;
}

void print(const RatioRow& row) {
  if (!row.wrong.empty()) {
    std::printf("%-38s wrong, not timed: %s\n", row.name.c_str(), row.wrong.c_str());
    return;
  }
  std::printf("%-38s %11.1f us %11.1f us %6.2fx of >= %gx (CPU time %.2fx)", row.name.c_str(),
              row.ours.median_us, row.baseline.median_us, row.ratio(), row.target,
              row.baseline.cpu_us / row.ours.cpu_us);
  if (!row.other_name.empty()) {
    std::printf(", %.2fx %s", row.other_ratio(), row.other_name.c_str());
  }
  if (row.bytes > 0.0) {
    std::printf("  %.1f GB/s", gb_s(row));
  } else {
    std::printf("  %.0f : %.0f GFLOP/s", gflops(row, row.ours), gflops(row, row.baseline));
  }
  std::printf(", %.0f %% of the roof", 100.0 * row.share_of_roof());
  if (row.share_target > 0.0) {
    std::printf(" of >= %.0f %%", 100.0 * row.share_target);
  }
  for (const auto& [name, share] : row.shares) {
    std::printf(", %s %.0f %%", name.c_str(), 100.0 * share);
  }
  for (const auto& [name, number] : row.numbers) {
    std::printf(", %s %.3g", name.c_str(), number);
  }
  std::printf(", spread %.0f %%%s%s\n", row.spread_percent(), row.is_noisy() ? " noisy" : "",
              row.is_missed() ? " MISSED" : "");
  std::fflush(stdout);
}

}  // namespace paperlab::bench
