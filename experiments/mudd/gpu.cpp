// Rows of the gpu preset: the figures of trained.cpp at a size where the paper's claims may show,
// each with its criterion. Runs are kept one by one, so that a row may take several calls. A
// difference counts if it is beyond two standard errors over seeds, and of one sign (paired.h).
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "experiments/mudd/jobs.h"
#include "experiments/mudd/trained.h"

namespace paperlab::experiments::mudd {
namespace {

const std::vector<std::string> kWithout = {"mudd_without_q", "mudd_without_k", "mudd_without_v",
                                           "mudd_without_r"};
const std::vector<std::string> kSparse = {"mudd_2x2", "mudd_1x2", "mudd_2x1", "mudd_window"};

std::vector<Series> table5_series(const Trainer& trainer) {
  std::vector<Series> all = {trainer.usual("base", true), trainer.usual("mudd", true),
                             trainer.usual("multiway_dynamic", true)};
  for (const char* method : {"static", "dynamic", "multiway_static", "base_realloc"}) {
    all.push_back(trainer.usual(method));
  }
  for (const std::string& method : kWithout) {
    all.push_back(trainer.usual(method));
  }
  return all;
}

// By how much one method's loss is above another's, as far as that counts.
double excess(const Trainer& trainer, const std::string& higher, const std::string& lower) {
  return counted_above(trainer.gap(trainer.usual(higher), trainer.usual(lower)));
}

// NaN if one of the runs has diverged.
double least_excess(const Trainer& trainer, const std::vector<std::string>& higher,
                    const std::string& lower) {
  std::vector<double> found;
  for (const std::string& method : higher) {
    found.push_back(excess(trainer, method, lower));
  }
  const bool has_nan =
      std::any_of(found.begin(), found.end(), [](double value) { return std::isnan(value); });
  return has_nan ? NAN : *std::min_element(found.begin(), found.end());
}

// One point of Fig. 3: compute is parameters of the blocks times bytes.
struct Point {
  double compute;
  double loss;
};

// The compute at which a + b C^-c, the curve through three points of falling loss, has `loss`; NaN
// if there is no such curve or it never has.
double compute_of_loss(const std::vector<Point>& points, double loss) {
  const auto [c0, l0] = points[0];
  const auto [c1, l1] = points[1];
  const auto [c2, l2] = points[2];
  const double wanted = (l0 - l1) / (l1 - l2);
  const auto ratio = [&](double power) {
    return (std::pow(c0, -power) - std::pow(c1, -power)) /
           (std::pow(c1, -power) - std::pow(c2, -power));
  };
  double low = 1e-6;
  double high = 8.0;
  if (!(l0 > l1 && l1 > l2) || !(ratio(low) < wanted && wanted < ratio(high))) {
    return NAN;
  }
  for (int i = 0; i < 200; ++i) {  // the ratio rises with the power
    const double middle = (low + high) / 2.0;
    (ratio(middle) < wanted ? low : high) = middle;
  }
  const double b = (l0 - l1) / (std::pow(c0, -low) - std::pow(c1, -low));
  const double a = l0 - b * std::pow(c0, -low);
  return loss > a ? std::pow((loss - a) / b, -1.0 / low) : NAN;
}

std::int64_t steps_of(const Config& config, Size size) {
  const auto parameters = static_cast<double>(12 * size.num_layers * size.d_model * size.d_model);
  const auto bytes_per_step = static_cast<double>(config.batch_size * config.seq_len);
  return config.fig3_bytes_per_parameter == 0.0
             ? config.num_steps
             : std::llround(
                   std::max(1.0, config.fig3_bytes_per_parameter * parameters / bytes_per_step));
}

double compute_of(const Config& config, const Series& series) {
  const auto [layers, width] = series.size;
  return static_cast<double>(12 * layers * width * width * series.num_steps * config.batch_size *
                             config.seq_len);
}

std::map<std::string, std::vector<Point>> record_figure3(const Config& config, Run& run,
                                                         const Trainer& trainer,
                                                         const std::vector<Series>& all) {
  std::map<std::string, std::vector<Point>> curves;
  for (const Series& series : all) {
    curves[series.method].push_back({compute_of(config, series), trainer.mean_loss(series)});
  }
  for (const auto& [method, points] : curves) {
    std::vector<double> compute;
    std::vector<double> loss;
    for (const Point& point : points) {
      compute.push_back(point.compute);
      loss.push_back(point.loss);
    }
    run.series("Fig. 3 by compute, " + method, {{"compute", compute}, {"loss", loss}});
  }
  return curves;
}

// Pairs of C3 whose losses are not in its order, or whose difference does not count.
double pairs_out_of_order(const Trainer& trainer, const std::map<std::string, Series>& at_size) {
  double count = 0.0;
  for (const auto& [higher, lower] :
       {std::pair("base", "static"), std::pair("base", "hyper_connections"),
        std::pair("static", "dynamic"), std::pair("hyper_connections", "dynamic"),
        std::pair("dynamic", "mudd")}) {
    count += counts_below(trainer.gap(at_size.at(lower), at_size.at(higher))) ? 0.0 : 1.0;
  }
  return count;
}

// What the fresh runs of a method recorded.
std::vector<double> recorded(const Config& config, const Run& run, const Series& series,
                             const std::string& what) {
  std::vector<double> values;
  for (const std::uint64_t seed : config.seeds) {
    values.push_back(run.value_of(fresh_name(config, series, seed) + ": " + what));
  }
  return values;
}

double mean_of(const std::vector<double>& values) { return gap_of(values).mean; }

void judge_heads(Run& run, const std::vector<double>& base, const std::vector<double>& mudd) {
  std::vector<double> more;
  for (std::size_t i = 0; i < base.size(); ++i) {
    more.push_back(mudd[i] / base[i] - 1.0);
  }
  run.scalar("Fig. 8 head activation of base", mean_of(base));
  run.scalar("Fig. 8 head activation of mudd by that of base", 1.0 + mean_of(more));
  constexpr double kMostWithSinks = 0.6;  // above it the base has no sinks to overcome
  if (mean_of(base) <= kMostWithSinks) {
    run.claim("C15", 1.0 + counted_above(gap_of(more)));
  }
}

}  // namespace

void table5_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  const std::vector<Series> all = table5_series(trainer);
  trainer.sweep(all);
  for (const Series& series : all) {
    if (series.method != "base") {
      trainer.record_gap(series, trainer.usual("base"));
    }
  }
  for (const std::string& method : kWithout) {
    trainer.record_gap(trainer.usual(method), trainer.usual("mudd"));
  }
  run.claim("C11a", excess(trainer, "base", "static"));
  run.claim("C11b", excess(trainer, "static", "dynamic"));
  run.claim("C11c", excess(trainer, "dynamic", "multiway_dynamic"));
  const double below_static = excess(trainer, "static", "multiway_static");
  const double above_dynamic = excess(trainer, "multiway_static", "multiway_dynamic");
  run.claim("C11d", std::isnan(above_dynamic) ? NAN : std::min(below_static, above_dynamic));
  run.claim("C12", excess(trainer, "base_realloc", "base"));
  run.claim("C13", least_excess(trainer, kWithout, "mudd"));
}

void figure3_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<Series> all = sized(config.fig3_layers, config.fig3_widths,
                                  {"base", "static", "hyper_connections", "dynamic", "mudd"});
  std::map<std::int64_t, std::map<std::string, Series>> by_width;
  for (Series& series : all) {
    series.num_steps = steps_of(config, series.size);
    by_width[series.size.d_model][series.method] = series;
  }
  trainer.sweep(all);
  auto curves = record_figure3(config, run, trainer, all);
  double disorder = 0.0;
  for (const auto& [width, at_size] : by_width) {
    disorder += pairs_out_of_order(trainer, at_size);
  }
  run.claim("C3b", disorder);
  if (config.fig3_layers.size() == 3) {
    const std::map<std::string, Series>& middle = by_width.at(config.fig3_widths[1]);
    const Point& point = curves.at("mudd")[1];
    const double multiplier = compute_of_loss(curves.at("base"), point.loss) / point.compute;
    const bool counts = counts_below(trainer.gap(middle.at("mudd"), middle.at("base")));
    run.claim("C1b", counts ? multiplier : std::min(multiplier, 1.0));
  }
}

void figure4_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  const std::vector<Series> all =
      sized({config.fig4_layers.front(), config.fig4_layers.back()},
            {config.fig4_widths.front(), config.fig4_widths.back()}, {"base", "mudd_eq10"});
  trainer.sweep(all);
  record_figure4(run, trainer, all);
  const std::vector<double> base = trainer.differences(all[1], all[0]);
  std::vector<double> more = trainer.differences(all[3], all[2]);
  for (std::size_t i = 0; i < more.size(); ++i) {
    more[i] -= base[i];
  }
  run.claim("C4a", counted_above(gap_of(base)));
  run.claim("C4b", counted_below(gap_of(more)));
}

void figure5_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  const std::vector<Series> dense = {trainer.usual("mudd", true), trainer.usual("base", true)};
  trainer.sweep(dense);
  run.claim("C5b", counted_below(trainer.record_gap(dense[0], dense[1])));
}

void figure6_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  const Series base = trainer.usual("base", true);
  const Series mudd = trainer.usual("mudd", true);
  trainer.sweep({base, mudd});
  const std::string what = "Fig. 6 mean cosine of the upper half, ";
  const std::vector<double> cosines = recorded(config, run, base, what + "R");
  run.claim("C14b", gap_of(cosines).least);
  std::vector<double> lower = recorded(config, run, mudd, what + "V");
  for (std::size_t i = 0; i < lower.size(); ++i) {
    lower[i] -= cosines[i];
  }
  run.claim("C14c", counted_below(gap_of(lower)));
  const std::string heads = "Fig. 8 mean head activation";
  judge_heads(run, recorded(config, run, base, heads), recorded(config, run, mudd, heads));
}

void figure9_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<Series> all = {trainer.usual("base", true), trainer.usual("mudd", true)};
  for (const std::string& method : kSparse) {
    all.push_back(trainer.usual(method));
  }
  trainer.sweep(all);
  record_figure9(run, trainer);
  const Series& base = all[0];
  const Gap whole = trainer.gap(all[1], base);
  const Gap sparse = trainer.gap(trainer.usual("mudd_2x2"), base);
  const bool counts = counts_below(whole) && counts_below(sparse);
  run.claim("C16a", least_excess(trainer, kSparse, "mudd"));
  run.claim("C16b", counts ? 1.0 - sparse.mean / whole.mean : 1.0);  // what is no gain is lost
  run.claim("C16c", excess(trainer, "mudd_window", "mudd_2x2"));
}

void embedding_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<double> stds = config.control_embedding_stds;
  stds.push_back(config.embedding_std);
  std::vector<Series> all;
  for (const double embedding_std : stds) {
    for (const char* method : {"base", "mudd"}) {
      Series& series =
          all.emplace_back(trainer.usual(method, embedding_std == config.embedding_std));
      series.embedding_std = embedding_std;
    }
  }
  trainer.sweep(all);
  std::map<std::string, std::vector<double>> columns = {{"embedding_std", stds}};
  for (std::size_t i = 0; i < all.size(); i += 2) {
    const Gap gap = trainer.record_gap(all[i + 1], all[i]);
    columns["base"].push_back(trainer.mean_loss(all[i]));
    columns["mudd"].push_back(trainer.mean_loss(all[i + 1]));
    columns["gap"].push_back(gap.mean);
    columns["gap_plus_2_standard_errors"].push_back(gap.mean + 2.0 * gap.standard_error);
  }
  run.series("embedding control, best rates", {columns.begin(), columns.end()});
}

}  // namespace paperlab::experiments::mudd
