// Regular languages: even pairs and parity by chain of thought in a one-layer transformer
// (Huang, Liang, Yang, ICML 2025; figures F1-F10, claims C1-C9 of config.json).
// Run: regular-language --config experiments/regular_language/config.json --preset small --out DIR
#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

void reproduce(const Config& config, Run& run) {
  run.row("F1", [&] { loss(config, run); });
  run.row("F2", [&] { token_scores(config, run); });
  run.row("F3", [&] { attention(config, run); });
  run.row("F4", [&] { norms(config, run); });
  run.row("F5", [&] { max_margin(config, run); });
  run.row("F6", [&] { rate(config, run); });
  run.row("F7", [&] { chain_of_thought(config, run); });
  run.row("F8", [&] { zero_shot(config, run); });
  run.row("F9", [&] { softmax_scale(config, run); });
  run.row("F10", [&] { longer_strings(config, run); });
  run.row("controls", [&] { controls(config, run); });
  for (const auto& [suffix, device] : {std::pair(std::string(), rl::Device::kCpu),
                                       std::pair(std::string("-gpu"), device_of(config))}) {
    const auto every_string_of = [&, at = device](std::size_t which) {
      every_string(config, run, config.all_lengths.at(which), at);
    };
    run.row("every-string-20" + suffix, [&] { every_string_of(0); });
    run.row("every-string-24" + suffix, [&] { every_string_of(1); });
    run.row("every-string-random" + suffix,
            [&, at = device] { every_string_random(config, run, at); });
    run.row("every-chain-16" + suffix, [&, at = device] { every_chain(config, run, at); });
  }
}

}  // namespace
}  // namespace paperlab::experiments::regular_language

int main(int argc, char** argv) {
  namespace experiments = paperlab::experiments;
  return experiments::run_main<experiments::regular_language::Config>(
      argc, argv, "regular-language", experiments::regular_language::reproduce);
}
