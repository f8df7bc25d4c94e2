#include "paperlab/train/fit.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/number_text_internal.h"
#include "paperlab/train/step_internal.h"
#include "paperlab/train/trained_internal.h"

namespace paperlab::train {
namespace {

void check_options(const FitOptions& options, const FitCallbacks& callbacks) {
  check(options.schedule);
  const auto check_count = [](std::int64_t value, std::int64_t least, const char* required) {
    require<ValueError>(value >= least, kFunction, required, std::to_string(value));
  };
  check_count(options.accumulate, 1, "accumulate must be >= 1");
  check_count(options.checkpoint_every, 0, "checkpoint_every must be >= 0");
  check_count(options.keep, 1, "keep must be >= 1");
  check_count(options.bucket_bytes, 1, "bucket_bytes must be >= 1");
  require<ValueError>(options.clip_norm > 0.0, kFunction, "clip_norm must be > 0",
                      number_text(options.clip_norm));
  require<ValueError>(static_cast<bool>(callbacks.batch), kFunction, "data must be given",
                      "nothing");
  require<ValueError>(!c10::InferenceMode::is_enabled(), kFunction,
                      "model must be trained outside of inference mode", "a call inside it");
}

// What must not change between the parts of a run. The number of processes may.
Json settings_of(const FitOptions& options, const nn::Decoder& decoder) {
  const Schedule& schedule = options.schedule;
  const OptimizerOptions& optimizer = options.optimizer;
  return {
      {"schedule", name_of(schedule.kind)},
      {"learning_rate", schedule.learning_rate},
      {"min_learning_rate", schedule.min_learning_rate},
      {"warmup_steps", schedule.warmup_steps},
      {"decay_steps", schedule.decay_steps},
      {"optimizer", name_of(optimizer.kind)},
      {"betas", {optimizer.beta1, optimizer.beta2}},
      {"eps", optimizer.eps},
      {"momentum", optimizer.momentum},
      {"weight_decay", options.weight_decay},
      {"no_decay", options.no_decay},
      {"clip_norm", std::isfinite(options.clip_norm) ? Json(options.clip_norm) : Json(nullptr)},
      {"precision", options.computes_in_bfloat16 ? Json("bfloat16") : Json(nullptr)},
      {"accumulate", options.accumulate},
      {"seed", options.seed},
      {"frozen parameters", frozen_names(decoder)},
      // A constant rate does not depend on the number of steps: such a run may be prolonged.
      {"steps", schedule.kind == ScheduleKind::kConstant ? Json(nullptr) : Json(schedule.steps)}};
}

void check_settings(const std::string& path, const Json& saved, const Json& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    const bool is_known = saved.is_object() && saved.contains(key);
    if (!is_known || saved[key] != value) {
      throw ValueError(c10::str(kFunction, ": ", key, " as in the run that ", path, " holds (",
                                is_known ? saved[key].dump() : "?", "), or another directory, got ",
                                value.dump()));
    }
  }
}

// What must be the same in all processes.
Json arguments_of(const FitOptions& options, const nn::Decoder& decoder) {
  Json arguments = settings_of(options, decoder);
  arguments["steps"] = options.schedule.steps;
  arguments["checkpoint_every"] = options.checkpoint_every;
  arguments["shard_optimizer"] = options.shards_optimizer;
  Json& model = arguments["model"];
  for (const auto& parameter : decoder.parameters()) {
    model.push_back({parameter.spec.name, parameter.value->sizes().vec(),
                     at::toString(parameter.value->scalar_type())});
  }
  return arguments;
}

// The newest checkpoint's step, or one of these.
constexpr double kNoCheckpoint = -1.0;
constexpr double kNoDirectory = -2.0;

// What a run begins with; the tensors are in the first process alone.
struct Beginning {
  std::vector<StepRecord> records{};
  std::optional<std::string> data{};  // where they stand
  SavedTensors tensors{};

  std::string text() const {
    Json steps = Json::array();
    for (const StepRecord& record : records) {
      steps.push_back({record.loss, record.grad_norm, record.learning_rate});
    }
    return Json{{"steps", steps}, {"data", data ? Json(*data) : Json(nullptr)}}.dump();
  }

  void read(const std::string& text) {
    const Json value = Json::parse(text);
    records.clear();
    for (const Json& one : value["steps"]) {
      records.push_back({static_cast<std::int64_t>(records.size()), one[0], one[1], one[2]});
    }
    data = value["data"].is_null() ? std::nullopt : std::optional<std::string>(value["data"]);
  }
};

class Run {
 public:
  Run(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks,
      const Agreement& agreement)
      : model_(model),
        options_(options),
        callbacks_(callbacks),
        agreement_(agreement),
        stepper_(model, options, callbacks, agreement) {}

  History operator()() {
    check_same_arguments();
    begin();
    history_.num_resumed = num_done();
    while (num_done() < options_.schedule.steps && history_.is_complete) {
      const std::int64_t step = num_done();
      history_.records.push_back(stepper_(step, std::exchange(first_batch_, {})));
      report(history_.records.back());
      const bool is_due =
          options_.checkpoint_every > 0 && (step + 1) % options_.checkpoint_every == 0;
      if (is_due || !history_.is_complete) {
        save();
      }
    }
    if (saved_ < num_done()) {
      save();
    }
    return history_;
  }

  // Where a process is lost: keeps what is whole, and says so.
  std::string keep_last_step() {
    std::string what = "after " + std::to_string(num_done()) + " steps";
    const bool is_whole =
        directory_ != nullptr && num_written_ == num_done() && !options_.shards_optimizer;
    if (is_whole && saved_ < num_done()) {
      try {
        stepper_.check_parameters(num_done() - 1);
        write(stepper_.state());
      } catch (const std::exception& error) {
        return what + " (without a checkpoint of them: " + error.what() + ")";
      }
    }
    return what;
  }

 private:
  std::int64_t num_done() const { return static_cast<std::int64_t>(history_.records.size()); }

  // Does the work in the first process alone; the others hear of its errors.
  void first_does(const std::function<void()>& work) const {
    agreement_.together([&] {
      if (directory_) {
        work();
      }
      return 0.0;
    });
  }

  void check_same_arguments() const {
    if (agreement_.is_alone()) {
      return;
    }
    const Json own = arguments_of(options_, *model_.decoder);
    const Json first = Json::parse(agreement_.text_of_first(own.dump()));
    agreement_.together([&] {
      for (const auto& [key, value] : own.items()) {
        require<ValueError>(first.contains(key) && first[key] == value, kFunction,
                            key + " must be the same in all processes",
                            "another one in process " + std::to_string(agreement_.rank()));
      }
      return 0.0;
    });
  }

  double open_directory() {
    if (!agreement_.is_first() || options_.out.empty()) {
      return kNoDirectory;
    }
    directory_ = std::make_unique<RunDirectory>(options_.out);
    directory_->check_metrics();
    const auto steps = options_.resumes ? directory_->checkpoints() : std::vector<std::int64_t>();
    return steps.empty() ? kNoCheckpoint : static_cast<double>(steps.back());
  }

  void begin() {
    const double newest = agreement_.together([&] { return open_directory(); });
    has_directory_ = newest != kNoDirectory;
    if (newest == kNoCheckpoint && options_.schedule.steps > 0) {
      agreement_.together([&] {
        first_batch_ = stepper_.batch_of(0);  // refused before anything is removed
        return 0.0;
      });
    }
    Beginning beginning;
    first_does([&] { load(newest, beginning); });
    if (has_directory_ && !agreement_.is_alone()) {
      beginning.read(agreement_.text_of_first(beginning.text()));
    }
    if (newest >= 0.0) {
      restore(beginning);
    }
    history_.records = std::move(beginning.records);
    stepper_.copy_parameters_of_first();
    saved_ = num_written_ = num_done();
    first_does([&] { directory_->open_metrics(num_done()); });
  }

  void load(double newest, Beginning& beginning) {
    if (!options_.resumes) {
      directory_->clear();
    }
    const auto step = static_cast<std::int64_t>(std::max(newest, 0.0));
    beginning.records = directory_->metrics(step);
    if (newest < 0.0) {
      return;
    }
    const Json training = directory_->training(step);
    check_settings(options_.out, training.value("settings", Json()), settings());
    require<ValueError>(
        step <= options_.schedule.steps, kFunction,
        "steps of at least the " + std::to_string(step) + " that " + options_.out + " has",
        std::to_string(options_.schedule.steps));
    if (callbacks_.load_data_state && training.contains("data")) {
      require<ValueError>(training["data"].is_string(), options_.out.c_str(),
                          "a checkpoint with the state of the data as a text",
                          training["data"].dump().substr(0, 80));
      beginning.data = training["data"];
    }
    beginning.tensors = directory_->read(step, model_);
  }

  void restore(const Beginning& beginning) {
    std::string before;
    if (beginning.data) {
      agreement_.together([&] {
        before = callbacks_.data_state();
        callbacks_.load_data_state(*beginning.data);
        return 0.0;
      });
    }
    try {
      stepper_.load_state(beginning.tensors.state);
    } catch (...) {
      if (beginning.data) {
        callbacks_.load_data_state(before);
      }
      throw;
    }
    if (directory_) {
      beginning.tensors.put_into(*model_.decoder);
    }
  }

  // Writes the step down, then asks whether to go on.
  void report(const StepRecord& record) {
    const double answer = agreement_.together([&] {
      if (directory_) {
        directory_->append(record);
        num_written_ = num_done();
      }
      const StepReply reply = callbacks_.on_step ? callbacks_.on_step(record) : StepReply();
      if (directory_ && !reply.measures.empty()) {
        directory_->append_measures(record.step, reply.measures);
      }
      if (directory_ && !agreement_.is_alone()) {
        data_state_ = data_state();  // later it may be that of a step that is never done
      }
      return reply.is_interrupted ? 2.0 : reply.goes_on ? 0.0 : 1.0;
    });
    history_.is_complete = answer == 0.0;
    history_.is_interrupted = answer == 2.0;
  }

  Json settings() const { return settings_of(options_, *model_.decoder); }

  std::optional<std::string> data_state() const {
    return callbacks_.data_state ? std::optional(callbacks_.data_state()) : std::nullopt;
  }

  // Of the state after the last step, which is a good one.
  void save() {
    agreement_.together([&] {
      stepper_.check_parameters(num_done() - 1);
      return 0.0;
    });
    if (has_directory_) {
      const NamedState state = stepper_.state();
      first_does([&] {
        data_state_ = data_state();
        write(state);
      });
    }
    saved_ = num_done();
  }

  void write(const NamedState& state) {
    Json training = {{"step", num_done()}, {"settings", settings()}};
    if (data_state_) {
      training["data"] = *data_state_;
    }
    directory_->save(num_done(), model_, state, training, options_.keep);
    saved_ = num_done();
  }

  nn::HfDecoder& model_;
  const FitOptions& options_;
  const FitCallbacks& callbacks_;
  const Agreement& agreement_;
  Stepper stepper_;
  std::unique_ptr<RunDirectory> directory_{};  // of the first process
  bool has_directory_ = false;                 // of the run
  History history_{};
  at::Tensor first_batch_{};  // of step 0, until it is taken
  std::optional<std::string> data_state_{};
  std::int64_t num_written_ = 0;  // steps in metrics.jsonl
  std::int64_t saved_ = 0;        // the step of the newest checkpoint
};

}  // namespace

History fit(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks) {
  const Agreement agreement(options.processes, model.decoder->parameters().front().value->device());
  std::unique_ptr<Run> run;
  try {
    agreement.together([&] {
      check_options(options, callbacks);
      run = std::make_unique<Run>(model, options, callbacks, agreement);
      return 0.0;
    });
    return (*run)();
  } catch (const LostProcess& lost) {
    throw LostProcess(c10::str(kFunction, ": ", run ? run->keep_last_step() : "at the start",
                               ": another process has ended or does not answer: ", lost.what()));
  }
}

}  // namespace paperlab::train
