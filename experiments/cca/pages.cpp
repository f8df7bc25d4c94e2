// A real model on manual pages: other forms of attention in place of the one that it was trained
// with, at once and after a short training of its attention's projections.
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "experiments/cca/attentions.h"
#include "experiments/cca/models.h"
#include "experiments/cca/rows.h"
#include "experiments/cca/study.h"
#include "experiments/cca/text.h"
#include "paperlab/nn/load.h"
#include "paperlab/train/loss.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr std::int64_t kSinks = 4;
constexpr std::uint64_t kTuneSeed = 1;
constexpr std::int64_t kTuneWarmup = 10;

// The model lies in the same cache as the text: CACHE/models/NAME beside
// CACHE/tokens/RECIPE/FOLDER.
std::string model_folder(const Config& config, const std::string& tokens) {
  const auto cache = std::filesystem::weakly_canonical(tokens).parent_path() / ".." / "..";
  return (cache / "models" / config.model).lexically_normal().string();
}

std::shared_ptr<nn::Decoder> load_model(const Config& config, const std::string& tokens) {
  return nn::load(model_folder(config, tokens),
                  config.dtype == "float64" ? at::kDouble : at::kFloat, /*is_mapped=*/true,
                  at::Device(config.device))
      .decoder;
}

std::string core_name(std::int64_t group) { return "CCA g=" + std::to_string(group); }

// Windows and sinks have as many keys for a page's last token as core-context attention.
std::vector<Method> methods_of(const Config& config, std::int64_t length) {
  const std::int64_t window = config.page_window;
  std::vector<Method> methods = {full_method()};
  for (const std::int64_t group : config.page_groups) {
    const Method core = core_method(core_name(group), group, window);
    const std::int64_t budget = keys_of_last(length, core.core);
    methods.push_back(core);
    methods.push_back(window_method(budget));
    methods.push_back(sinks_method(kSinks, budget));
  }
  const std::int64_t group = config.page_groups.front();
  methods.push_back(
      core_method(core_name(group) + ", mean pooling", group, window, lib::Pooling::kMean));
  methods.push_back(core_method(core_name(group) + ", keep_first=4", group, window,
                                lib::Pooling::kAttention, kSinks));
  return methods;
}

std::string key(const std::string& bucket, const std::string& when) {
  return "nats per token " + bucket + when;
}

double nats_of(const Run& run, const std::string& task, const std::string& bucket,
               const std::string& when) {
  return run.value_of(task + ": " + key(bucket, when));
}

// Nats per token by position, mean over pages.
void note(nn::Decoder& decoder, const at::Tensor& tokens, const std::vector<std::int64_t>& ends,
          const std::string& when, Outcome& outcome) {
  for (const auto& [bucket, nats] : by_position(token_nats(decoder, tokens), ends, 1)) {
    outcome.scalars.emplace_back(key(bucket, when), nats.mean().item<double>());
  }
}

std::string task_name(const std::string& row, const Method& method) {
  return row + " " + method.name;
}

Task measured(const std::string& name, const std::shared_ptr<nn::Decoder>& model,
              const at::Tensor& tokens, const std::vector<std::int64_t>& ends,
              const Method& method) {
  return {task_name(name, method), 1, [=](const OnStep& on_step) {
            const auto decoder = model->with_values(values_of(*model));
            use(*decoder, method);
            Outcome outcome;
            note(*decoder, tokens, ends, "", outcome);
            on_step();
            return outcome;
          }};
}

void record_table(Run& run, const std::string& name, const std::vector<std::int64_t>& ends,
                  const std::vector<Method>& methods, const std::vector<std::string>& whens) {
  Columns columns = {{"row", row_numbers(methods.size())}};
  for (const std::string& when : whens) {
    for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
      std::vector<double> nats;
      nats.reserve(methods.size());
      for (const Method& method : methods) {
        nats.push_back(nats_of(run, task_name(name, method), bucket_name(ends, i), when));
      }
      columns.emplace_back(bucket_name(ends, i) + when, nats);
    }
  }
  run.series(name, columns);
}

// Copies of the attention's projections, which may be trained; the rest is shared.
std::pair<std::shared_ptr<nn::Decoder>, std::vector<train::Trained>> with_own_projections(
    const nn::Decoder& model) {
  std::vector<at::Tensor> values;
  std::vector<train::Trained> trained;
  for (const auto& [spec, value] : model.parameters()) {
    const bool is_trained = spec.role == nn::Role::kQuery || spec.role == nn::Role::kKey ||
                            spec.role == nn::Role::kValue || spec.role == nn::Role::kOut;
    values.push_back(is_trained ? value->detach().clone().requires_grad_() : value->detach());
    if (is_trained) {
      trained.push_back({spec.name, values.back(), 0.0});
    }
  }
  return {model.with_values(std::move(values)), std::move(trained)};
}

Task tuned(const Config& config, const std::shared_ptr<nn::Decoder>& model, const Text& text,
           const at::Tensor& tokens, const Method& method) {
  return {task_name("tuned pages", method), config.page_tune_steps,
          [&config, &text, model, tokens, method](const OnStep& on_step) {
            auto [decoder, trained] = with_own_projections(*model);
            use(*decoder, method);
            Outcome outcome;
            note(*decoder, tokens, config.page_buckets, " before", outcome);
            const Recipe recipe{.learning_rate = config.page_tune_rate,
                                .warmup_steps = std::min(kTuneWarmup, config.page_tune_steps)};
            Minimizer minimizer(std::move(trained), recipe);
            data::Sampler sampler = text.sampler(config.page_tune_length, kTuneSeed);
            for (std::int64_t step = 0; step < config.page_tune_steps; ++step) {
              const at::Tensor batch = next_windows(sampler, 1).to(at::Device(config.device));
              minimizer.step(train::next_token_loss(*decoder, batch));
              on_step();
            }
            note(*decoder, tokens, config.page_buckets, " after", outcome);
            return outcome;
          }};
}

// Records how many pages there were; whether as many as asked for.
bool note_pages(Run& run, const std::string& name, const at::Tensor& pages, std::int64_t asked) {
  run.scalar(name + ": how many were found", static_cast<double>(pages.size(0)));
  return pages.size(0) == asked;
}

// Tokens 512-1023: what claims are about.
std::string bucket_before_last(const Config& config) {
  return bucket_name(config.page_buckets, config.page_buckets.size() - 3);
}

}  // namespace

void pages(const Config& config, Run& run, const std::string& tokens) {
  const Text text({{tokens, config.domains}});
  const auto model = load_model(config, tokens);
  const std::vector<Method> methods = methods_of(config, config.page_length);
  std::vector<Task> tasks;
  tasks.reserve(2 * methods.size());
  const at::Tensor short_pages = text.pages(config.page_length, config.pages);
  const bool has_all = note_pages(run, "pages", short_pages, config.pages);
  for (const Method& method : methods) {
    tasks.push_back(measured("pages", model, short_pages, config.page_buckets, method));
  }
  const std::vector<Method> long_methods = methods_of(config, config.long_length);
  if (config.long_pages > 0) {
    const at::Tensor long_pages = text.pages(config.long_length, config.long_pages);
    note_pages(run, "long pages", long_pages, config.long_pages);
    for (const Method& method : long_methods) {
      tasks.push_back(measured("long pages", model, long_pages, config.long_buckets, method));
    }
  }
  complete(run, config.step_s, tasks);
  record_table(run, "pages", config.page_buckets, methods, {""});
  if (config.long_pages > 0) {
    record_table(run, "long pages", config.long_buckets, long_methods, {""});
  }
  if (has_all) {
    const std::string bucket = bucket_before_last(config);
    run.claim("C1a", nats_of(run, task_name("pages", methods[1]), bucket, "") -
                         nats_of(run, task_name("pages", methods[3]), bucket, ""));
  }
}

void tuned_pages(const Config& config, Run& run, const std::string& tokens) {
  const Text text({{tokens, config.domains}});
  const auto model = load_model(config, tokens);
  const Method core = core_method("CCA", config.page_tune_group, config.page_tune_window);
  const std::vector<Method> methods = {core, full_method(),
                                       window_method(keys_of_last(config.page_length, core.core))};
  const at::Tensor held_out = text.pages(config.page_length, config.pages);
  const bool has_all = note_pages(run, "tuned pages", held_out, config.pages);
  std::vector<Task> tasks;
  tasks.reserve(methods.size());
  for (const Method& method : methods) {
    tasks.push_back(tuned(config, model, text, held_out, method));
  }
  complete(run, config.step_s, tasks);
  record_table(run, "tuned pages", config.page_buckets, methods, {" before", " after"});
  const auto repaired = [&](const Method& method) {
    const std::string task = task_name("tuned pages", method);
    const std::string bucket = bucket_before_last(config);
    return nats_of(run, task, bucket, " before") - nats_of(run, task, bucket, " after");
  };
  if (has_all) {
    run.claim("C1h", repaired(methods[0]) - repaired(methods[1]));
  }
}

}  // namespace paperlab::experiments::cca
