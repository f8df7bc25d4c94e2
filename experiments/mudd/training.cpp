#include "experiments/mudd/training.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "paperlab/core/error.h"
#include "paperlab/data/sampler.h"
#include "paperlab/data/tokens.h"
#include "paperlab/mudd/analysis.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/mudd/model.h"
#include "paperlab/train/fit.h"
#include "paperlab/train/loss.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

at::Tensor tokens_of(const data::Sampler& sampler, const std::vector<data::Window>& windows) {
  const auto rows = static_cast<std::int64_t>(windows.size());
  at::Tensor tokens = at::empty({rows, sampler.length() + 1}, at::kLong);
  sampler.fill(windows,
               {tokens.mutable_data_ptr<std::int64_t>(), static_cast<std::size_t>(tokens.numel())},
               serial_executor());
  return tokens;
}

std::vector<data::Domain> domains_of(const Config& config, const data::TokenFolder& folder,
                                     const std::string& split) {
  std::vector<data::Domain> domains;
  domains.reserve(config.domains.size());
  for (const std::string& name : config.domains) {
    domains.push_back({name, folder.open(name, split)});
  }
  return domains;
}

// Windows of the held-out documents, evenly over each domain: [N, T + 1].
at::Tensor validation_windows(const Config& config, const data::TokenFolder& folder) {
  const data::Sampler sampler(domains_of(config, folder, "valid"), {.length = config.seq_len});
  const auto num_domains = static_cast<std::int64_t>(config.domains.size());
  std::vector<data::Window> windows;
  for (std::int64_t domain = 0; domain < num_domains; ++domain) {
    const std::int64_t there = sampler.num_windows()[static_cast<std::size_t>(domain)];
    const std::int64_t wanted = std::min(there, config.validation_windows / num_domains);
    for (std::int64_t i = 0; i < wanted; ++i) {
      windows.push_back(sampler.window(domain, i * there / wanted));
    }
  }
  return tokens_of(sampler, windows);
}

}  // namespace

class Text {
 public:
  Text(const Config& config, const std::string& tokens_folder)
      : folder_(tokens_folder),
        train_(domains_of(config, folder_, "train")),
        validation_(validation_windows(config, folder_)) {}

  const std::vector<data::Domain>& train() const { return train_; }
  const at::Tensor& validation() const { return validation_; }
  std::int64_t vocab_size() const { return folder_.vocab_size(); }

 private:
  data::TokenFolder folder_;
  std::vector<data::Domain> train_;
  at::Tensor validation_;
};

std::shared_ptr<const Text> open_text(const Config& config, const std::string& tokens_folder) {
  return std::make_shared<const Text>(config, tokens_folder);
}

Columns curve(const train::History& history, std::int64_t every) {
  std::vector<double> step;
  std::vector<double> loss;
  double sum = 0.0;
  std::int64_t count = 0;
  for (const train::StepRecord& record : history.records) {
    sum += record.loss;
    if (++count == every || record.step + 1 == std::ssize(history.records)) {
      step.push_back(static_cast<double>(record.step + 1));
      loss.push_back(sum / static_cast<double>(count));
      sum = 0.0;
      count = 0;
    }
  }
  return {{"step", step}, {"loss", loss}};
}

namespace {

at::Device device_of(const Config& config) { return at::Device(config.device); }

nn::HfDecoder new_model(const Config& config, const lib::MuddConfig& sizes, const Job& job) {
  const at::ScalarType dtype = config.dtype == "float64" ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> values =
      lib::initial_values(sizes, job.seed, dtype, {config.init_std, job.embedding_std});
  for (at::Tensor& value : values) {
    value = value.to(device_of(config)).requires_grad_();
  }
  nn::HfDecoder model;
  model.decoder = lib::make_decoder(sizes, std::move(values));
  return model;
}

train::FitOptions fit_options(const Config& config, const Job& job, const nn::Decoder& decoder) {
  train::FitOptions options;
  options.schedule = {
      .kind = train::ScheduleKind::kCosine,
      .learning_rate = job.learning_rate,
      .min_learning_rate = config.final_rate * job.learning_rate,
      .steps = job.num_steps,
      .warmup_steps = std::llround(config.warmup_share * static_cast<double>(job.num_steps))};
  options.weight_decay = config.weight_decay;
  for (const auto& parameter : decoder.parameters()) {
    if (parameter.value->dim() < 2) {
      options.no_decay.push_back(parameter.spec.name);
    }
  }
  options.clip_norm = config.clip_norm;
  options.computes_in_bfloat16 = config.dtype == "bfloat16";
  options.seed = job.seed;
  return options;
}

double validation_loss(nn::Decoder& decoder, const Config& config, const at::Tensor& windows) {
  constexpr std::int64_t kTokensAtOnce = 8192;
  const at::NoGradGuard no_grad;
  double sum = 0.0;
  for (const at::Tensor& part :
       windows.split(std::max<std::int64_t>(1, kTokensAtOnce / windows.size(1)), 0)) {
    const at::Tensor loss = train::next_token_loss(decoder, part.to(device_of(config)));
    sum += loss.item<double>() * static_cast<double>(part.size(0));
  }
  return sum / static_cast<double>(windows.size(0));
}

std::vector<double> numbers_from(std::int64_t first, std::size_t count) {
  std::vector<double> numbers(count);
  for (std::size_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<double>(first + static_cast<std::int64_t>(i));
  }
  return numbers;
}

double mean_from(const std::vector<double>& values, std::size_t first) {
  double sum = 0.0;
  for (std::size_t i = first; i < values.size(); ++i) {
    sum += values[i];
  }
  return sum / static_cast<double>(values.size() - std::min(first, values.size()));
}

void record_cosines(const lib::InputCosines& found, Outcome& outcome) {
  Columns columns = {{"pair", numbers_from(2, found.cosines.front().size())}};
  for (std::size_t way = 0; way < found.ways.size(); ++way) {
    const std::string name(1, found.ways[way]);
    const std::vector<double>& cosines = found.cosines[way];
    columns.emplace_back(name, cosines);
    outcome.scalars.emplace_back("Fig. 6 mean cosine from the second pair on, " + name,
                                 mean_from(cosines, 1));
    outcome.scalars.emplace_back("Fig. 6 mean cosine of the upper half, " + name,
                                 mean_from(cosines, cosines.size() / 2));
  }
  outcome.series.emplace_back("Fig. 6", std::move(columns));
}

// One map for each way: x the source, y the block.
void record_weights(const std::vector<lib::ConnectionStats>& stats, Outcome& outcome) {
  for (const char way : std::string("QKVR")) {
    std::vector<double> source;
    std::vector<double> block;
    std::vector<double> mean;
    std::vector<double> std;
    for (const lib::ConnectionStats& of_layer : stats) {
      const std::size_t at = of_layer.ways.find(way);
      if (at == std::string::npos) {
        continue;
      }
      const auto row = static_cast<std::int64_t>(at);
      for (std::size_t j = 0; j < of_layer.sources.size(); ++j) {
        source.push_back(static_cast<double>(of_layer.sources[j]));
        block.push_back(static_cast<double>(of_layer.layer + 1));
        const auto column = static_cast<std::int64_t>(j);
        mean.push_back(of_layer.mean.select(0, row).select(0, column).item<double>());
        std.push_back(of_layer.std.select(0, row).select(0, column).item<double>());
      }
    }
    if (!source.empty()) {
      outcome.series.emplace_back(
          std::string("Figs. 12 and 13, ") + way,
          Columns{{"source", source}, {"block", block}, {"mean", mean}, {"std", std}});
    }
  }
}

void analyse(const Config& config, const lib::MuddConfig& sizes, const nn::Decoder& decoder,
             const at::Tensor& windows, Outcome& outcome) {
  const std::int64_t every =
      config.analysed_windows == 0
          ? 1
          : std::max<std::int64_t>(1, windows.size(0) / config.analysed_windows);
  const at::Tensor tokens = windows.slice(0, 0, windows.size(0), every)
                                .narrow(1, 0, config.seq_len)
                                .to(device_of(config));
  record_cosines(lib::adjacent_input_cosine(sizes, decoder, tokens), outcome);
  const lib::Sinks sinks{.num_initial = 2, .tokens = {'.', '\n'}};
  const std::vector<double> ratio = lib::head_activation_ratio(sizes, decoder, tokens, sinks);
  outcome.series.emplace_back("Fig. 8",
                              Columns{{"layer", numbers_from(1, ratio.size())}, {"ratio", ratio}});
  outcome.scalars.emplace_back("Fig. 8 mean head activation", mean_from(ratio, 0));
  record_weights(lib::rectified_connection_weights(sizes, decoder, tokens), outcome);
}

}  // namespace

Outcome run_job(const Config& config, const Text& text, const Job& job,
                const std::function<void()>& on_step) {
  at::set_num_threads(1);  // of the calling thread
  lib::MuddConfig sizes = model_config(config, job.method, job.size);
  sizes.vocab_size = text.vocab_size();
  nn::HfDecoder model = new_model(config, sizes, job);
  data::Sampler sampler(text.train(), {.length = config.seq_len, .seed = job.seed});
  train::FitCallbacks callbacks;
  callbacks.batch = [&](std::int64_t) {
    return tokens_of(sampler, sampler.next(config.batch_size)).to(device_of(config));
  };
  callbacks.on_step = [&](const train::StepRecord&) {
    on_step();
    return train::StepReply();
  };
  Outcome outcome;
  try {
    const train::History history =
        train::fit(model, fit_options(config, job, *model.decoder), callbacks);
    outcome.series.emplace_back("training", curve(history, config.record_every));
    outcome.loss = validation_loss(*model.decoder, config, text.validation());
  } catch (const ValueError&) {  // the loss or a gradient was not finite
    outcome.loss = std::numeric_limits<double>::quiet_NaN();
    return outcome;
  }
  if (job.is_analysed) {
    analyse(config, sizes, *model.decoder, text.validation(), outcome);
  }
  return outcome;
}

}  // namespace paperlab::experiments::mudd
