// Rows of trained models: Table 5, Figs. 3, 4 and 9, the control of the embedding's scale, and what
// Figs. 6, 8, 12 and 13 show of the models of Table 5's core.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "experiments/mudd/jobs.h"
#include "experiments/mudd/trained.h"

namespace paperlab::experiments::mudd {
namespace {

const std::string kBase = "base";
const std::string kMultiway = "multiway_dynamic";

void train_core(Trainer& trainer) {
  trainer.sweep({trainer.usual(kBase, true), trainer.usual(kMultiway, true)});
}

// Sweeps methods and reports each one's gap to the base.
void report(const Config& config, Run& run, const std::string& tokens,
            const std::vector<std::string>& methods) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  std::vector<Series> all;
  all.reserve(methods.size());
  for (const std::string& method : methods) {
    all.push_back(trainer.usual(method));
  }
  trainer.sweep(all);
  for (const Series& series : all) {
    trainer.record_gap(series, trainer.usual(kBase));
  }
}

struct Curve {
  std::vector<double> layers;
  std::vector<double> parameters;
  std::vector<double> loss;
};

double value(const Config& config, Run& run, const Series& series, std::uint64_t seed,
             const std::string& what) {
  return run.value_of(fresh_name(config, series, seed) + ": " + what);
}

}  // namespace

std::vector<Series> sized(const std::vector<std::int64_t>& layers,
                          const std::vector<std::int64_t>& widths,
                          const std::vector<std::string>& methods) {
  std::vector<Series> all;
  for (const std::string& method : methods) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      Series& series = all.emplace_back();
      series.method = method;
      series.size = {layers[i], widths[i]};
    }
  }
  return all;
}

void record_figure4(Run& run, const Trainer& trainer, const std::vector<Series>& all) {
  std::map<std::string, Curve> curves;
  for (const Series& series : all) {
    Curve& columns = curves[series.method];
    columns.layers.push_back(static_cast<double>(series.size.num_layers));
    columns.loss.push_back(trainer.mean_loss(series));
  }
  for (const auto& [method, columns] : curves) {
    run.series("Fig. 4 " + method, {{"layers", columns.layers}, {"loss", columns.loss}});
    run.scalar("Fig. 4 loss of the deepest less the first, " + method,
               columns.loss.back() - columns.loss.front());
  }
}

void record_figure9(Run& run, const Trainer& trainer) {
  std::vector<double> number;
  std::vector<double> loss;
  for (const char* method : {"mudd", "mudd_2x2", "mudd_1x2", "mudd_2x1", "mudd_window", "base"}) {
    number.push_back(static_cast<double>(number.size() + 1));
    loss.push_back(trainer.mean_loss(trainer.usual(method)));
  }
  run.series("Fig. 9", {{"row", number}, {"loss", loss}});
}

void table5_core(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  const Series multiway = trainer.usual(kMultiway);
  const Series base = trainer.usual(kBase);
  run.claim("C1a", counted_below(trainer.record_gap(multiway, base)));
}

void ddformer(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  const Series dynamic = trainer.usual("dynamic");
  trainer.sweep({dynamic});
  const Series base = trainer.usual(kBase);
  const Series multiway = trainer.usual(kMultiway);
  run.claim("C3a", counted_below(trainer.record_gap(dynamic, base)));
  trainer.record_gap(multiway, dynamic);
}

void embedding_control(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<Job> jobs;
  std::vector<double> std;
  std::vector<std::vector<double>> loss(2);
  for (const double embedding_std : {config.control_embedding_std, config.embedding_std}) {
    for (const std::string& method : {kBase, kMultiway}) {
      const std::string name = method + " embedding " + number_text(embedding_std) + " rate " +
                               number_text(config.control_rate);
      jobs.push_back({.name = name,
                      .method = method,
                      .size = trainer.usual(method).size,
                      .learning_rate = config.control_rate,
                      .embedding_std = embedding_std,
                      .seed = config.sweep_seeds.front(),
                      .num_steps = config.num_steps});
    }
    std.push_back(embedding_std);
  }
  trainer.train(jobs);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    loss[i % 2].push_back(trainer.loss(jobs[i].name));
  }
  std::vector<double> gap(std.size());
  for (std::size_t i = 0; i < gap.size(); ++i) {
    gap[i] = loss[1][i] - loss[0][i];
  }
  run.series(
      "embedding control",
      {{"embedding_std", std}, {"base", loss[0]}, {"multiway_dynamic", loss[1]}, {"gap", gap}});
}

void table5_rest(const Config& config, Run& run, const std::string& tokens) {
  report(config, run, tokens,
         {"static", "multiway_static", "hyper_connections", "lime", "base_realloc", "mudd",
          "mudd_without_q", "mudd_without_k", "mudd_without_v", "mudd_without_r", "mudd_eq10"});
  Trainer trainer(config, run, tokens);
  for (const char* way : {"q", "k", "v", "r"}) {
    const Series without = trainer.usual(std::string("mudd_without_") + way);
    trainer.record_gap(without, trainer.usual("mudd"));
  }
}

void figure3(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  const std::vector<Series> all = sized(config.fig3_layers, config.fig3_widths,
                                        {kBase, "static", "hyper_connections", "dynamic", "mudd"});
  trainer.sweep(all);
  std::map<std::string, Curve> curves;
  for (const Series& series : all) {
    Curve& columns = curves[series.method];
    const auto [layers, width] = series.size;
    columns.parameters.push_back(static_cast<double>(12 * layers * width * width));
    columns.loss.push_back(trainer.mean_loss(series));
    if (series.method != kBase) {
      Series base = series;
      base.method = kBase;
      trainer.record_gap(series, base);
    }
  }
  for (const auto& [method, columns] : curves) {
    run.series("Fig. 3 " + method, {{"parameters", columns.parameters}, {"loss", columns.loss}});
  }
}

void figure4(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  const std::vector<Series> all =
      sized(config.fig4_layers, config.fig4_widths, {kBase, "mudd_eq10"});
  trainer.sweep(all);
  record_figure4(run, trainer, all);
}

void figure9(const Config& config, Run& run, const std::string& tokens) {
  report(config, run, tokens, {"mudd", "mudd_2x2", "mudd_1x2", "mudd_2x1", "mudd_window"});
  record_figure9(run, Trainer(config, run, tokens));
}

void figure6(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  const std::string what = "Fig. 6 mean cosine from the second pair on, ";
  double largest = std::numeric_limits<double>::lowest();
  std::map<std::string, double> means;
  for (const std::string way : {"Q", "K", "V", "R"}) {
    std::vector<double> differences;
    for (const std::uint64_t seed : config.seeds) {
      const double base = value(config, run, trainer.usual(kBase), seed, what + "R");
      differences.push_back(value(config, run, trainer.usual(kMultiway), seed, what + way) - base);
    }
    const Gap gap = gap_of(differences);
    run.scalar("Fig. 6 stream " + way + " less base: mean", gap.mean);
    run.scalar("Fig. 6 stream " + way + " less base: mean + 2 standard errors",
               gap.mean + 2.0 * gap.standard_error);
    largest = std::max(largest, counted_below(gap));
    means[way] = gap.mean;
  }
  run.claim("C14a", largest);
  const auto below = std::count_if(means.begin(), means.end(), [&](const auto& stream) {
    return stream.second < means.at("V");
  });
  run.scalar("Fig. 6 streams below V (paper: none)", static_cast<double>(below));
}

void figure8(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  train_core(trainer);
  double ratio = 0.0;
  for (const std::uint64_t seed : config.seeds) {
    const std::string what = "Fig. 8 mean head activation";
    ratio += value(config, run, trainer.usual(kMultiway), seed, what) /
             value(config, run, trainer.usual(kBase), seed, what) /
             static_cast<double>(config.seeds.size());
  }
  run.scalar("Fig. 8 head activation of multiway_dynamic by that of base", ratio);
}

}  // namespace paperlab::experiments::mudd
