// MUDDFormer: multiway dynamic dense connections (Xiao, Meng, Li, Yuan, ICML 2025; claims C1-C17 of
// config.json). Run: mudd --config experiments/mudd/config.json --preset small --out DIR
// --corpus manual-pages:en=FOLDER --corpus digits=FOLDER
#include "experiments/mudd/rows.h"
#include "paperlab/core/error.h"

namespace paperlab::experiments::mudd {
namespace {

using TrainedRow = void (*)(const Config& config, Run& run, const std::string& tokens);

void reproduce(const Config& config, Run& run) {
  run.row("table1", [&] { table1(run); });
  run.row("table3", [&] { table3(run); });
  run.row("table5-published", [&] { published_table5(run); });
  run.row("table9-published", [&] { published_table9(run); });
  run.row("trap", [&] { snapshot_trap(run); });
  run.row("table6", [&] { table6(config, run); });
  run.row("traffic", [&] { traffic(run); });
  const Corpus corpus{config.corpus, config.domains};
  const auto trained = [&](const std::string& name, TrainedRow body) {
    run.row(name, corpus,
            [&config, &run, body](const std::string& tokens) { body(config, run, tokens); });
  };
  trained("table5-core", table5_core);
  trained("figure6", figure6);
  trained("figure8", figure8);
  trained("ddformer", ddformer);
  trained("embedding", embedding_control);
  run.row("table9", Corpus{config.pictures, {}},
          [&](const std::string& images) { table9(config, run, images); });
  trained("table5", table5_rest);
  trained("figure3", figure3);
  trained("figure4", figure4);
  trained("figure9", figure9);
  trained("table5-gpu", table5_gpu);
  trained("figure6-gpu", figure6_gpu);
  trained("figure3-gpu", figure3_gpu);
  trained("figure4-gpu", figure4_gpu);
  trained("figure5-gpu", figure5_gpu);
  trained("figure9-gpu", figure9_gpu);
  trained("embedding-gpu", embedding_gpu);
  run.row("table4-decoding-gpu", [&] { table4_decoding(config, run); });
  run.row("table4-training-gpu", [&] { table4_training(config, run); });
  run.row("table7-gpu", [&] { table7(config, run); });
  run.row("figure9-speed-gpu", [&] { figure9_speed(config, run); });
}

}  // namespace
}  // namespace paperlab::experiments::mudd

int main(int argc, char** argv) {
  namespace experiments = paperlab::experiments;
  return experiments::run_main<experiments::mudd::Config>(argc, argv, "mudd",
                                                          experiments::mudd::reproduce);
}
