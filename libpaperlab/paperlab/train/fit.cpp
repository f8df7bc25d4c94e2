#include "paperlab/train/fit.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/train/loss.h"
#include "paperlab/train/number_text_internal.h"

namespace paperlab::train {
namespace {

constexpr char kFunction[] = "fit";

void check_options(const FitOptions& options, const FitCallbacks& callbacks) {
  check(options.schedule);
  const auto check_count = [](std::int64_t value, std::int64_t least, const char* required) {
    require<ValueError>(value >= least, kFunction, required, std::to_string(value));
  };
  check_count(options.accumulate, 1, "accumulate must be >= 1");
  check_count(options.checkpoint_every, 0, "checkpoint_every must be >= 0");
  check_count(options.keep, 1, "keep must be >= 1");
  require<ValueError>(options.clip_norm > 0.0, kFunction, "clip_norm must be > 0",
                      number_text(options.clip_norm));
  require<ValueError>(static_cast<bool>(callbacks.batch), kFunction, "data must be given",
                      "nothing");
  require<ValueError>(!c10::InferenceMode::is_enabled(), kFunction,
                      "model must be trained outside of inference mode", "a call inside it");
}

bool decays(const std::string& name, const std::vector<std::string>& no_decay) {
  return std::none_of(no_decay.begin(), no_decay.end(), [&name](const std::string& pattern) {
    return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
  });
}

// What the decoder must be for training; nothing of it is changed.
void check_decoder(const nn::Decoder& decoder, const std::vector<std::string>& no_decay) {
  const auto& parameters = decoder.parameters();
  for (const auto& parameter : parameters) {
    require<ValueError>(!parameter.value->is_inference(), kFunction,
                        "model must be made outside of inference mode",
                        "the inference tensor '" + parameter.spec.name + "'");
  }
  // Lists for several architectures name what this one does not have; a list of typing errors alone
  // names nothing.
  const bool is_effective = std::any_of(
      parameters.begin(), parameters.end(),
      [&no_decay](const auto& parameter) { return !decays(parameter.spec.name, no_decay); });
  require<ValueError>(no_decay.empty() || is_effective, kFunction,
                      "no_decay must match the name of a parameter",
                      no_decay.empty() ? "" : "'" + no_decay.front() + "'");
}

std::vector<Trained> trained_parameters(const nn::Decoder& decoder, const FitOptions& options) {
  check_decoder(decoder, options.no_decay);
  std::vector<Trained> trained;
  for (const auto& parameter : decoder.parameters()) {
    if (parameter.value->requires_grad()) {
      const std::string& name = parameter.spec.name;
      require<ValueError>(parameter.value->is_leaf(), kFunction,
                          "parameter '" + name + "' must be a leaf", "a computed tensor");
      trained.push_back(
          {name, *parameter.value, decays(name, options.no_decay) ? options.weight_decay : 0.0});
    }
  }
  require<ValueError>(!trained.empty(), kFunction, "a parameter that requires a gradient", "none");
  const at::ScalarType type = trained.front().value.scalar_type();
  require<ValueError>(!options.computes_in_bfloat16 || type == at::kFloat, kFunction,
                      "precision bfloat16 needs parameters in float32", at::toString(type));
  return trained;
}

std::vector<std::string> frozen_names(const nn::Decoder& decoder) {
  std::vector<std::string> names;
  for (const auto& parameter : decoder.parameters()) {
    if (!parameter.value->requires_grad()) {
      names.push_back(parameter.spec.name);
    }
  }
  return names;
}

// What must not change between the parts of a run.
Json settings_of(const FitOptions& options, const nn::Decoder& decoder) {
  const auto& [schedule, optimizer, decay, no_decay, clip_norm, is_half, accumulate, out, every,
               keep, resumes, seed] = options;
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
      {"weight_decay", decay},
      {"no_decay", no_decay},
      {"clip_norm", std::isfinite(clip_norm) ? Json(clip_norm) : Json(nullptr)},
      {"precision", is_half ? Json("bfloat16") : Json(nullptr)},
      {"accumulate", accumulate},
      {"seed", seed},
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

bool is_finite(const at::Tensor& x) { return at::isfinite(x).all().item<bool>(); }

// The first parameter, else the first layer's input, that is not finite.
std::string first_bad_tensor(nn::Decoder& decoder, const at::Tensor& batch) {
  for (const auto& parameter : decoder.parameters()) {
    if (!is_finite(*parameter.value)) {
      return "parameter '" + parameter.spec.name + "'";
    }
  }
  const at::NoGradGuard no_grad;
  std::string bad = "the logits";
  bool is_found = false;
  const std::int64_t hook =
      decoder.add_linear_hook([&](const std::string& name, const at::Tensor& x) {
        if (!is_found && !is_finite(x)) {
          is_found = true;
          bad = "the input of '" + name + "'";
        }
      });
  decoder.forward(batch.narrow(1, 0, batch.size(1) - 1));
  decoder.remove_linear_hook(hook);
  return bad;
}

// While this lives, the decoder computes with bfloat16 copies of its parameters, through which
// gradients flow to the parameters.
class HalfParameters {
 public:
  explicit HalfParameters(const nn::Decoder& decoder) : decoder_(decoder) {
    for (const auto& parameter : decoder_.parameters()) {
      own_.push_back(*parameter.value);
      *parameter.value = parameter.value->to(at::kBFloat16);
    }
  }
  ~HalfParameters() {
    for (std::size_t i = 0; i < own_.size(); ++i) {
      *decoder_.parameters()[i].value = own_[i];
    }
  }
  HalfParameters(const HalfParameters&) = delete;
  HalfParameters& operator=(const HalfParameters&) = delete;

 private:
  const nn::Decoder& decoder_;
  std::vector<at::Tensor> own_;
};

class Run {
 public:
  Run(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks)
      : model_(model),
        options_(options),
        callbacks_(callbacks),
        trained_(trained_parameters(*model.decoder, options)),
        optimizer_(make_optimizer(trained_, options.optimizer)) {}

  History operator()() {
    History history;
    if (!options_.out.empty()) {
      resume(history);
    }
    history.num_resumed = static_cast<std::int64_t>(history.records.size());
    std::int64_t saved = history.num_resumed;  // the step of the newest checkpoint
    for (std::int64_t step = saved; step < options_.schedule.steps; ++step) {
      history.records.push_back(one_step(step));
      history.is_complete = report(history.records.back());
      const bool is_due =
          options_.checkpoint_every > 0 && (step + 1) % options_.checkpoint_every == 0;
      if (is_due || !history.is_complete) {
        save(step + 1);
        saved = step + 1;
      }
      if (!history.is_complete) {
        break;
      }
    }
    const auto num_done = static_cast<std::int64_t>(history.records.size());
    if (saved < num_done) {
      save(num_done);
    }
    return history;
  }

 private:
  // Writes the step down, then asks whether to go on.
  bool report(const StepRecord& record) {
    if (directory_) {
      directory_->append(record);
    }
    const StepReply reply = callbacks_.on_step ? callbacks_.on_step(record) : StepReply();
    if (directory_ && !reply.measures.empty()) {
      directory_->append_measures(record.step, reply.measures);
    }
    return reply.goes_on;
  }

  Json settings() const { return settings_of(options_, *model_.decoder); }

  void resume(History& history) {
    RunDirectory& directory = directory_.emplace(options_.out);
    directory.check_metrics();
    const auto steps = options_.resumes ? directory.checkpoints() : std::vector<std::int64_t>();
    const std::int64_t step = steps.empty() ? 0 : steps.back();
    if (steps.empty() && options_.schedule.steps > 0) {
      first_batch_ = batch_of(0);  // refused before anything is removed
    }
    if (!options_.resumes) {
      directory.clear();
    }
    history.records = directory.metrics(step);
    if (!steps.empty()) {
      restore(directory, step);
    }
    directory.open_metrics(step);
  }

  void restore(const RunDirectory& directory, std::int64_t step) {
    const Json training = directory.training(step);
    check_settings(options_.out, training.value("settings", Json()), settings());
    require<ValueError>(
        step <= options_.schedule.steps, kFunction,
        "steps of at least the " + std::to_string(step) + " that " + options_.out + " has",
        std::to_string(options_.schedule.steps));
    if (!callbacks_.load_data_state || !training.contains("data")) {
      directory.restore(step, model_, *optimizer_);
      return;
    }
    require<ValueError>(training["data"].is_string(), options_.out.c_str(),
                        "a checkpoint with the state of the data as a text",
                        training["data"].dump().substr(0, 80));
    const std::string before = callbacks_.data_state();
    callbacks_.load_data_state(training["data"]);
    try {
      directory.restore(step, model_, *optimizer_);
    } catch (...) {
      callbacks_.load_data_state(before);
      throw;
    }
  }

  // Of the state before `step`, which is a good one.
  void save(std::int64_t step) {
    check_parameters(step - 1);
    if (directory_) {
      Json training = {{"step", step}, {"settings", settings()}};
      if (callbacks_.data_state) {
        training["data"] = callbacks_.data_state();
      }
      directory_->save(step, model_, *optimizer_, training, options_.keep);
    }
  }

  void check_parameters(std::int64_t step) const {
    for (const Trained& parameter : trained_) {
      if (!is_finite(parameter.value)) {
        throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                         ": parameters must be finite; '" + parameter.name +
                         "' is the first that is not");
      }
    }
  }

  // The batch of a step, checked. Autograd keeps it, which it does not do in inference mode.
  at::Tensor batch_of(std::int64_t step) const {
    const at::Tensor given = callbacks_.batch(step);
    check_batch(given, step);
    const at::Tensor batch = given.to(trained_.front().value.device());
    return batch.is_inference() ? batch.clone() : batch;
  }

  StepRecord one_step(std::int64_t step) {
    const at::Tensor batch = first_batch_.defined() ? first_batch_ : batch_of(step);
    first_batch_.reset();
    StepRecord record;
    record.step = step;
    record.learning_rate = learning_rate(options_.schedule, step);
    record.loss = accumulate_gradients(batch, step);
    std::vector<at::Tensor> gradients;
    for (const Trained& parameter : trained_) {
      if (parameter.value.grad().defined()) {
        gradients.push_back(parameter.value.grad());
      }
    }
    record.grad_norm = clip_gradients(gradients, options_.clip_norm);
    if (!std::isfinite(record.grad_norm)) {
      refuse_gradients(step);
    }
    optimizer_->step(record.learning_rate);
    clear_gradients();
    return record;
  }

  // The last tokens of the rows are never read by the decoder, which would check them.
  void check_batch(const at::Tensor& batch, std::int64_t step) const {
    const std::string source = "data(" + std::to_string(step) + ") must ";
    const bool is_shaped = batch.defined() && batch.dim() == 2 && batch.size(0) >= 1;
    require<ValueError>(is_shaped && batch.size(1) >= 2, kFunction,
                        source + "return [B, T + 1] with B, T >= 1",
                        batch.defined() ? c10::str(batch.sizes()) : "nothing");
    const nn::DecoderConfig& config = model_.decoder->config();
    require<ValueError>(batch.size(1) - 1 <= config.max_positions, kFunction,
                        source + "return at most max_position_embeddings + 1 (" +
                            std::to_string(config.max_positions + 1) + ") tokens a row",
                        std::to_string(batch.size(1)));
    const auto [low, high] = at::aminmax(batch.cpu());
    const auto id = (low.item<std::int64_t>() < 0 ? low : high).item<std::int64_t>();
    require<ValueError>(id >= 0 && id < config.vocab_size, kFunction,
                        source + "return tokens in 0..vocab_size - 1 (" +
                            std::to_string(config.vocab_size - 1) + ")",
                        std::to_string(id));
    require<ValueError>(
        batch.size(0) % options_.accumulate == 0, kFunction,
        "accumulate must divide the batch's rows (" + std::to_string(batch.size(0)) + ")",
        std::to_string(options_.accumulate));
  }

  // Sets the gradients of the mean over the batch; returns that mean.
  double accumulate_gradients(const at::Tensor& batch, std::int64_t step) {
    const std::int64_t parts = options_.accumulate;
    clear_gradients();
    const at::AutoGradMode with_gradients(true);
    double sum = 0.0;
    for (const at::Tensor& part : batch.chunk(parts, 0)) {
      const std::optional<HalfParameters> half = in_half();
      const at::Tensor loss = next_token_loss(*model_.decoder, part);
      const auto value = loss.item<double>();
      if (!std::isfinite(value)) {
        clear_gradients();
        throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                         ": the loss must be finite, got " + number_text(value) + "; " +
                         first_bad_tensor(*model_.decoder, part) + " is the first that is not");
      }
      sum += value;
      (parts == 1 ? loss : loss.div(static_cast<double>(parts))).backward();
    }
    return sum / static_cast<double>(parts);
  }

  std::optional<HalfParameters> in_half() const {
    return options_.computes_in_bfloat16
               ? std::optional<HalfParameters>(std::in_place, *model_.decoder)
               : std::nullopt;
  }

  [[noreturn]] void refuse_gradients(std::int64_t step) {
    std::string name = "their norm overflows";
    for (const Trained& parameter : trained_) {
      const at::Tensor& grad = parameter.value.grad();
      if (grad.defined() && !is_finite(grad)) {
        name = "that of '" + parameter.name + "' is the first that is not";
        break;
      }
    }
    clear_gradients();
    throw ValueError(std::string(kFunction) + ": step " + std::to_string(step) +
                     ": gradients must be finite; " + name);
  }

  void clear_gradients() {
    for (Trained& parameter : trained_) {
      parameter.value.mutable_grad().reset();
    }
  }

  nn::HfDecoder& model_;
  const FitOptions& options_;
  const FitCallbacks& callbacks_;
  std::vector<Trained> trained_;
  std::unique_ptr<Optimizer> optimizer_;
  std::optional<RunDirectory> directory_;
  at::Tensor first_batch_{};  // of step 0, until it is taken
};

}  // namespace

History fit(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks) {
  check_options(options, callbacks);
  return Run(model, options, callbacks)();
}

}  // namespace paperlab::train
