// ViT on Fashion-MNIST and digits, trained by this library and by transformers with the same
// initial weights, batches and settings (claims C1a-C4 of config.json). Run:
// vision --config experiments/vision/config.json --preset small --out DIR --corpus NAME=FOLDER ...
#include "experiments/vision/rows.h"

namespace paperlab::experiments::vision {
namespace {

std::vector<Need> needs_of(const Config& config, const Recipe& recipe,
                           const std::vector<Job>& jobs) {
  std::vector<Need> needs = {Corpus{recipe.images, {}}};
  for (const Job& job : jobs) {
    needs.emplace_back(product_of(config, job));
  }
  return needs;
}

void reproduce(const Config& config, Run& run) {
  run.row("curve", needs_of(config, config.digits, {curve_job(config)}),
          [&](const Folders& folders) { curve(config, run, folders); });
  const auto row = [&](const std::string& name, const Recipe& recipe) {
    run.row(name, needs_of(config, recipe, jobs_of(config, recipe, name)),
            [&config, &run, &recipe, name](const Folders& folders) {
              paired(config, run, recipe, name, folders);
            });
  };
  row("digits", config.digits);
  row("fashion", config.fashion);
}

}  // namespace
}  // namespace paperlab::experiments::vision

int main(int argc, char** argv) {
  namespace experiments = paperlab::experiments;
  return experiments::run_main<experiments::vision::Config>(argc, argv, "vision",
                                                            experiments::vision::reproduce);
}
