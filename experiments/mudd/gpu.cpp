// Rows of the gpu preset: the figures of trained.cpp at a size where the paper's claims may show,
// each with its criterion. Runs are kept one by one, so that a row may take several calls.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "experiments/mudd/jobs.h"

namespace paperlab::experiments::mudd {
namespace {

const std::vector<std::string> kWithout = {"mudd_without_q", "mudd_without_k", "mudd_without_v",
                                           "mudd_without_r"};
const std::vector<std::string> kSparse = {"mudd_2x2", "mudd_1x2", "mudd_2x1", "mudd_window"};

std::vector<Series> table5_series(const Trainer& trainer) {
  std::vector<Series> all = {trainer.usual("base", true), trainer.usual("mudd", true)};
  for (const char* method :
       {"static", "dynamic", "multiway_static", "multiway_dynamic", "base_realloc"}) {
    all.push_back(trainer.usual(method));
  }
  for (const std::string& method : kWithout) {
    all.push_back(trainer.usual(method));
  }
  return all;
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

std::int64_t steps_of(const Config& config, double parameters) {
  const auto bytes_per_step = static_cast<double>(config.batch_size * config.seq_len);
  return config.fig3_bytes_per_parameter == 0.0
             ? config.num_steps
             : std::llround(
                   std::max(1.0, config.fig3_bytes_per_parameter * parameters / bytes_per_step));
}

}  // namespace

void table5_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  trainer.sweep(table5_series(trainer));
  const auto loss = [&](const std::string& method) {
    return trainer.mean_loss(trainer.usual(method));
  };
  run.claim("C11a", loss("base") - loss("static"));
  run.claim("C11b", loss("static") - loss("dynamic"));
  run.claim("C11c", loss("dynamic") - loss("multiway_dynamic"));
  run.claim("C11d", std::min(loss("static") - loss("multiway_static"),
                             loss("multiway_static") - loss("multiway_dynamic")));
  run.claim("C12", loss("base_realloc") - loss("base"));
  double least = INFINITY;
  for (const std::string& method : kWithout) {
    least = std::min(least, loss(method) - loss("mudd"));
  }
  run.claim("C13", least);
}

void figure3_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::map<std::string, std::vector<Point>> curves;
  std::vector<Series> all;
  for (std::size_t i = 0; i < config.fig3_layers.size(); ++i) {
    const Size size{config.fig3_layers[i], config.fig3_widths[i]};
    const auto parameters = static_cast<double>(12 * size.num_layers * size.d_model * size.d_model);
    for (const char* method : {"base", "static", "hyper_connections", "dynamic", "mudd"}) {
      all.push_back({method, size, false, steps_of(config, parameters)});
    }
  }
  trainer.sweep(all);
  for (const Series& series : all) {
    const auto [layers, width] = series.size;
    const auto compute = static_cast<double>(12 * layers * width * width * series.num_steps *
                                             config.batch_size * config.seq_len);
    curves[series.method].push_back({compute, trainer.mean_loss(series)});
  }
  double disorder = 0.0;
  for (std::size_t i = 0; i < config.fig3_layers.size(); ++i) {
    const auto loss = [&](const char* method) { return curves.at(method)[i].loss; };
    for (const auto& [higher, lower] :
         {std::pair("base", "static"), std::pair("base", "hyper_connections"),
          std::pair("static", "dynamic"), std::pair("hyper_connections", "dynamic"),
          std::pair("dynamic", "mudd")}) {
      disorder += loss(higher) > loss(lower) ? 0.0 : 1.0;
    }
  }
  run.claim("C3b", disorder);
  for (const auto& [method, points] : curves) {
    std::vector<double> compute;
    std::vector<double> loss;
    for (const Point& point : points) {
      compute.push_back(point.compute);
      loss.push_back(point.loss);
    }
    run.series("Fig. 3 by compute, " + method, {{"compute", compute}, {"loss", loss}});
  }
  if (config.fig3_layers.size() == 3) {
    const Point& middle = curves.at("mudd")[1];
    run.claim("C1b", compute_of_loss(curves.at("base"), middle.loss) / middle.compute);
  }
}

void figure4_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<double> gains;
  for (const char* method : {"base", "mudd_eq10"}) {
    const Size wide{config.fig4_layers.front(), config.fig4_widths.front()};
    const Size deep{config.fig4_layers.back(), config.fig4_widths.back()};
    const std::vector<Series> both = {{method, wide, false, 0}, {method, deep, false, 0}};
    trainer.sweep(both);
    gains.push_back(trainer.mean_loss(both[1]) - trainer.mean_loss(both[0]));
  }
  run.claim("C4a", gains[0]);
  run.claim("C4b", gains[1] - gains[0]);
}

void figure6_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  trainer.sweep({trainer.usual("base", true), trainer.usual("mudd", true)});
  const auto mean = [&](const std::string& method, const std::string& what) {
    double sum = 0.0;
    for (const std::uint64_t seed : config.seeds) {
      sum += run.value_of(fresh_name(config, trainer.usual(method), seed) + ": " + what);
    }
    return sum / static_cast<double>(config.seeds.size());
  };
  const double base = mean("base", "Fig. 6 mean cosine of the upper half, R");
  run.claim("C14b", base);
  run.claim("C14c", mean("mudd", "Fig. 6 mean cosine of the upper half, V") - base);
  const double heads = mean("base", "Fig. 8 mean head activation");
  const double ratio = mean("mudd", "Fig. 8 mean head activation") / heads;
  run.scalar("Fig. 8 head activation of base", heads);
  run.scalar("Fig. 8 head activation of mudd by that of base", ratio);
  constexpr double kMostWithSinks = 0.6;  // above it the base has no sinks to overcome
  if (heads <= kMostWithSinks) {
    run.claim("C15", ratio);
  }
}

void figure9_gpu(const Config& config, Run& run, const std::string& tokens) {
  Trainer trainer(config, run, tokens);
  std::vector<Series> all = {trainer.usual("base", true), trainer.usual("mudd", true)};
  for (const std::string& method : kSparse) {
    all.push_back(trainer.usual(method));
  }
  trainer.sweep(all);
  const auto loss = [&](const std::string& method) {
    return trainer.mean_loss(trainer.usual(method));
  };
  double least = INFINITY;
  for (const std::string& method : kSparse) {
    least = std::min(least, loss(method) - loss("mudd"));
  }
  run.claim("C16a", least);
  run.claim("C16b", (loss("mudd_2x2") - loss("mudd")) / (loss("base") - loss("mudd")));
  run.claim("C16c", loss("mudd_window") - loss("mudd_2x2"));
}

}  // namespace paperlab::experiments::mudd
