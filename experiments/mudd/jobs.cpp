#include "experiments/mudd/jobs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string_view>
#include <utility>

#include "experiments/common/side_by_side.h"
#include "experiments/mudd/training.h"
#include "experiments/mudd/vision.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/device.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

constexpr char kLoss[] = "validation loss";
constexpr std::int64_t kDigitSize = 8;  // of pictures in rows and columns

constexpr std::array<std::pair<std::string_view, lib::Variant>, 8> kVariants = {
    {{"base", lib::Variant::kBase},
     {"static", lib::Variant::kStatic},
     {"dynamic", lib::Variant::kDynamic},
     {"multiway_static", lib::Variant::kMultiwayStatic},
     {"multiway_dynamic", lib::Variant::kMultiwayDynamic},
     {"mudd", lib::Variant::kMudd},
     {"hyper_connections", lib::Variant::kHyperConnections},
     {"lime", lib::Variant::kLime}}};

lib::Variant variant_of(const std::string& name) {
  const auto* const found = std::find_if(kVariants.begin(), kVariants.end(),
                                         [&](const auto& known) { return known.first == name; });
  require<ValueError>(found != kVariants.end(), "mudd", "a known method", name);
  return found->second;
}

// Takes `suffix` off the end of `name`; false if it is not there.
bool strip(std::string& name, const std::string& suffix) {
  if (!name.ends_with(suffix)) {
    return false;
  }
  name.resize(name.size() - suffix.size());
  return true;
}

void apply_suffix(const Config& config, std::string& method, lib::MuddConfig& model) {
  if (strip(method, "_realloc")) {
    model.ffn_reallocation = true;
  } else if (strip(method, "_eq10")) {
    model.pre_post_norm = lib::PrePostNorm::kEq10;
  } else if (strip(method, "_window")) {
    model.window = config.fig9_window;
  }
  for (const char way : std::string("QKVR")) {
    const auto lower = static_cast<char>(way - 'A' + 'a');
    if (strip(method, std::string("_without_") + lower)) {
      std::erase(model.ways, way);
    }
  }
  for (const auto& [suffix, dilation, period] :
       {std::tuple("_2x2", 2, 2), std::tuple("_1x2", 1, 2), std::tuple("_2x1", 2, 1)}) {
    if (strip(method, suffix)) {
      model.dilation = dilation;
      model.period = period;
    }
  }
}

template <class T>
bool are_different(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return !values.empty() && std::adjacent_find(values.begin(), values.end()) == values.end();
}

bool are_different_seeds(std::vector<std::uint64_t> fresh,
                         const std::vector<std::uint64_t>& of_sweep) {
  const bool has_both = !fresh.empty() && !of_sweep.empty();
  fresh.insert(fresh.end(), of_sweep.begin(), of_sweep.end());
  return has_both && are_different(fresh);
}

std::string key(const std::string& job, const std::string& what) { return job + ": " + what; }

void record(Run& run, const Job& job, const Outcome& outcome) {
  run.scalar(key(job.name, kLoss), outcome.loss);
  for (const auto& [name, value] : outcome.scalars) {
    run.scalar(key(job.name, name), value);
  }
  for (const auto& [name, columns] : outcome.series) {
    run.series(key(job.name, name), columns);
  }
  run.keep();
}

}  // namespace

void Config::validate() const {
  const auto check = [](bool holds, const char* required, const std::string& got) {
    require<ValueError>(holds, "mudd", required, got);
  };
  for (const auto& [name, value] :
       {std::pair("seq_len", seq_len), std::pair("batch_size", batch_size),
        std::pair("num_steps", num_steps), std::pair("record_every", record_every),
        std::pair("ffn_multiple", ffn_multiple),
        std::pair("validation_windows", validation_windows),
        std::pair("speed_ffn_round", speed_ffn_round), std::pair("speed_vocab", speed_vocab),
        std::pair("speed_context", speed_context), std::pair("speed_prompt", speed_prompt),
        std::pair("speed_tokens", speed_tokens), std::pair("speed_batch", speed_batch),
        std::pair("speed_repetitions", speed_repetitions), std::pair("vit_epochs", vit_epochs),
        std::pair("vit_batch_size", vit_batch_size)}) {
    check(value >= 1, (std::string(name) + " must be >= 1").c_str(), std::to_string(value));
  }
  check(!domains.empty(), "domains must name at least one", "none");
  check(device == "cpu" || device == "cuda", "device must be cpu or cuda", device);
  check(dtype == "float32" || dtype == "float64" || dtype == "bfloat16",
        "dtype must be float32, float64 or bfloat16", dtype);
  check(vit_half_pixel > 0.0, "vit_half_pixel must be > 0", std::to_string(vit_half_pixel));
  check(are_different(learning_rates), "learning_rates must be different numbers", "others");
  check(are_different_seeds(seeds, sweep_seeds), "seeds and sweep_seeds must be different numbers",
        "others");
  check(are_different_seeds(vit_seeds, sweep_seeds),
        "vit_seeds and sweep_seeds must be different numbers", "others");
  check(fig3_layers.size() == fig3_widths.size(), "as many fig3_layers as fig3_widths", "others");
  check(fig4_layers.size() == fig4_widths.size(), "as many fig4_layers as fig4_widths", "others");
  const std::size_t num_shapes = speed_layers.size();
  check(num_shapes >= 1 && speed_widths.size() == num_shapes && speed_heads.size() == num_shapes &&
            speed_ffns.size() == num_shapes,
        "as many speed_widths, speed_heads and speed_ffns as speed_layers", "others");
  lib::check(model_config(*this, "mudd_window", {num_layers, d_model}));
  lib::check(vit_config(*this, "muddvit", kDigitSize, kDigitSize, 2));
  ops::require_device(at::Device(device));
}

lib::MuddConfig model_config(const Config& config, const std::string& method, Size size) {
  lib::MuddConfig model;
  model.vocab_size = 256;
  model.num_layers = size.num_layers;
  model.d_model = size.d_model;
  model.num_heads = config.num_heads;
  const auto multiple = static_cast<double>(config.ffn_multiple);
  const std::int64_t count = std::llround(8.0 * static_cast<double>(size.d_model) / 3.0 / multiple);
  model.d_ff = std::max<std::int64_t>(1, count) * config.ffn_multiple;
  model.ffn_round = config.ffn_multiple;
  std::string variant = method;
  apply_suffix(config, variant, model);
  model.variant = variant_of(variant);
  return model;
}

std::string number_text(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

std::string name_of(const Config& config, const Series& series) {
  const auto [layers, width] = series.size;
  std::string name = series.method;
  if (layers != config.num_layers || width != config.d_model) {
    name += " " + std::to_string(layers) + "x" + std::to_string(width);
  }
  if (series.num_steps != 0 && series.num_steps != config.num_steps) {
    name += " " + std::to_string(series.num_steps) + " steps";
  }
  return series.embedding_std == 0.0 || series.embedding_std == config.embedding_std
             ? name
             : name + " embedding " + number_text(series.embedding_std);
}

std::string fresh_name(const Config& config, const Series& series, std::uint64_t seed) {
  return name_of(config, series) + " best rate seed " + std::to_string(seed);
}

Trainer::Trainer(const Config& config, Run& run, const std::string& tokens_folder)
    : Trainer(config, run, [&config, tokens_folder] {
        const std::shared_ptr<const Text> text = open_text(config, tokens_folder);
        return RunJob([&config, text](const Job& job, const std::function<void()>& on_step) {
          return run_job(config, *text, job, on_step);
        });
      }) {}

Trainer::Trainer(const Config& config, Run& run, std::function<RunJob()> open)
    : config_(config), run_(run), open_(std::move(open)) {}

std::vector<Job> Trainer::missing(const std::vector<Job>& jobs) const {
  std::vector<Job> result;
  for (const Job& job : jobs) {
    const bool is_new = std::none_of(result.begin(), result.end(),
                                     [&](const Job& other) { return other.name == job.name; });
    if (is_new && !run_.find(key(job.name, kLoss))) {
      result.push_back(job);
    }
  }
  return result;
}

void Trainer::plan(const std::vector<Job>& jobs) {
  for (const Job& job : missing(jobs)) {
    num_planned_ += job.num_steps;
  }
}

void Trainer::train(const std::vector<Job>& jobs) {
  plan(jobs);
  train_planned(jobs);
}

void Trainer::train_planned(const std::vector<Job>& jobs) {
  const std::vector<Job> todo = missing(jobs);
  if (todo.empty()) {
    return;
  }
  const RunJob run_job = open_();
  config_.run_seconds == 0.0 ? train_side_by_side(todo, run_job) : train_one_by_one(todo, run_job);
}

void Trainer::train_side_by_side(const std::vector<Job>& jobs, const RunJob& run_job) {
  std::vector<Outcome> outcomes(jobs.size());
  run_side_by_side(run_.num_threads(), jobs.size(),
                   [&](std::size_t i) { outcomes[i] = run_job(jobs[i], [this] { ++num_done_; }); },
                   {[&](std::size_t i) { record(run_, jobs[i], outcomes[i]); },
                    [this] { run_.progress(num_done_, num_planned_); }});
}

// Within the limit of the call.
void Trainer::train_one_by_one(const std::vector<Job>& jobs, const RunJob& run_job) {
  for (const Job& job : jobs) {
    run_.begin_part(config_.run_seconds);
    record(run_, job, run_job(job, [this] { run_.progress(++num_done_, num_planned_); }));
  }
}

// Without its name, rate and seed.
Job Trainer::job_of(const Series& series) const {
  Job job;
  job.method = series.method;
  job.size = series.size;
  job.embedding_std = series.embedding_std == 0.0 ? config_.embedding_std : series.embedding_std;
  job.num_steps = series.num_steps == 0 ? config_.num_steps : series.num_steps;
  return job;
}

std::vector<Job> Trainer::sweep_jobs(const Series& series) const {
  std::vector<Job> jobs;
  for (const double rate : config_.learning_rates) {
    for (const std::uint64_t seed : config_.sweep_seeds) {
      Job& job = jobs.emplace_back(job_of(series));
      job.name =
          name_of(config_, series) + " rate " + number_text(rate) + " seed " + std::to_string(seed);
      job.learning_rate = rate;
      job.seed = seed;
    }
  }
  return jobs;
}

// Means over the seeds of the sweep.
std::vector<double> Trainer::losses_by_rate(const Series& series) const {
  std::vector<double> means(config_.learning_rates.size());
  const std::vector<Job> jobs = sweep_jobs(series);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const std::size_t count = config_.sweep_seeds.size();
    means[i / count] += loss(jobs[i].name) / static_cast<double>(count);
  }
  return means;
}

std::vector<Job> Trainer::fresh_jobs(const Series& series, double rate) const {
  std::vector<Job> jobs;
  jobs.reserve(config_.seeds.size());
  for (const std::uint64_t seed : config_.seeds) {
    Job& job = jobs.emplace_back(job_of(series));
    job.name = fresh_name(config_, series, seed);
    job.learning_rate = rate;
    job.seed = seed;
    job.is_analysed = series.is_analysed;
  }
  return jobs;
}

double Trainer::best_rate(const Series& series) const {
  std::size_t best = 0;
  const std::vector<double> losses = losses_by_rate(series);
  for (std::size_t i = 1; i < losses.size(); ++i) {
    if (std::isnan(losses[best]) || losses[i] < losses[best]) {
      best = i;
    }
  }
  return config_.learning_rates[best];
}

void Trainer::sweep(const std::vector<Series>& all) {
  std::vector<Job> jobs;
  for (const Series& series : all) {
    const std::vector<Job> more = sweep_jobs(series);
    jobs.insert(jobs.end(), more.begin(), more.end());
  }
  for (const Series& series : all) {
    plan(sweep_jobs(series));
    plan(fresh_jobs(series, 0.0));
  }
  train_planned(jobs);
  jobs.clear();
  for (const Series& series : all) {
    const std::vector<Job> more = fresh_jobs(series, best_rate(series));
    jobs.insert(jobs.end(), more.begin(), more.end());
  }
  train_planned(jobs);
  for (const Series& series : all) {
    const std::string name = name_of(config_, series);
    if (run_.find("best rate " + name)) {
      continue;
    }
    run_.series("sweep " + name,
                {{"learning_rate", config_.learning_rates}, {"loss", losses_by_rate(series)}});
    run_.series("seeds " + name,
                {{"seed", {config_.seeds.begin(), config_.seeds.end()}}, {"loss", losses(series)}});
    run_.scalar("mean loss " + name, mean_loss(series));
    run_.scalar("best rate " + name, best_rate(series));
  }
}

double Trainer::loss(const std::string& job) const {
  return run_.find(key(job, kLoss)).value_or(NAN);
}

std::vector<double> Trainer::losses(const Series& series) const {
  std::vector<double> values;
  values.reserve(config_.seeds.size());
  for (const std::uint64_t seed : config_.seeds) {
    values.push_back(loss(fresh_name(config_, series, seed)));
  }
  return values;
}

double Trainer::mean_loss(const Series& series) const {
  double sum = 0.0;
  for (const double value : losses(series)) {
    sum += value;
  }
  return sum / static_cast<double>(config_.seeds.size());
}

std::vector<double> Trainer::differences(const Series& a, const Series& b) const {
  std::vector<double> result = losses(a);
  const std::vector<double> others = losses(b);
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] -= others[i];
  }
  return result;
}

Gap Trainer::record_gap(const Series& a, const Series& b) {
  const Gap found = gap(a, b);
  const std::string name = "gap of " + name_of(config_, a) + " to " + name_of(config_, b);
  if (run_.find(name + ": mean")) {  // another row has recorded it
    return found;
  }
  run_.scalar(name + ": mean", found.mean);
  run_.scalar(name + ": mean + 2 standard errors", found.mean + 2.0 * found.standard_error);
  run_.scalar(name + ": seeds not below 0", found.num_positive);
  return found;
}

}  // namespace paperlab::experiments::mudd
