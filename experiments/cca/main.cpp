// CCA: core-context-aware attention (Chen, You, Li, Li, Wang, Tan, ICML 2025; claims C1-C12 of
// config.json). Run: cca --config experiments/cca/config.json --preset small --out DIR
// --corpus manual-pages:en@smollm2=FOLDER

#include "experiments/cca/rows.h"

namespace paperlab::experiments::cca {
namespace {

void reproduce(const Config& config, Run& run) {
  run.row("longbench", [&] { long_bench(run); });
  run.row("exact-match", [&] { exact_match(run); });
  run.row("efficiency", [&] { efficiency(run); });
  run.row("flop-bounds", [&] { flop_bounds(run); });
  run.row("flexibility", [&] { published_flexibility(run); });
  run.row("kv-cache", [&] { kv_cache(config, run); });
  run.row("partition", [&] { partition(config, run); });
  run.row("recall", [&] { recall(config, run); });
  std::vector<Need> texts;
  for (const std::string& name : config.text_corpora) {
    texts.emplace_back(Corpus::of_name(name));
  }
  run.row("text-model", texts,
          [&](const std::vector<std::string>& tokens) { text_model(config, run, tokens); });
  const Corpus read_by_model{config.corpus, config.domains, config.model};
  run.row("pages", read_by_model, [&](const std::string& tokens) { pages(config, run, tokens); });
  run.row("tuned-pages", read_by_model,
          [&](const std::string& tokens) { tuned_pages(config, run, tokens); });
  run.row("prefill-gpu", [&] { prefill_speed(config, run); });
  run.row("decoder-gpu", [&] { decoder_speed(config, run); });
}

}  // namespace
}  // namespace paperlab::experiments::cca

int main(int argc, char** argv) {
  namespace experiments = paperlab::experiments;
  return experiments::run_main<experiments::cca::Config>(argc, argv, "cca",
                                                         experiments::cca::reproduce);
}
