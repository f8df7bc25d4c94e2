#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <cmath>

#include "paperlab/core/error.h"
#include "paperlab/train/number_text_internal.h"
#include "paperlab/train/settings_internal.h"
#include "paperlab/train/step_internal.h"
#include "paperlab/train/trained_internal.h"

namespace paperlab::train {

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

Json settings_of(const FitOptions& options, const Model& model) {
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
      {"frozen parameters", frozen_names(model)},
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

Json arguments_of(const FitOptions& options, const Model& model) {
  Json arguments = settings_of(options, model);
  arguments["steps"] = options.schedule.steps;
  arguments["checkpoint_every"] = options.checkpoint_every;
  arguments["shard_optimizer"] = options.shards_optimizer;
  Json& parameters = arguments["model"];
  for (const auto& parameter : model.parameters()) {
    parameters.push_back({parameter.spec.name, parameter.value->sizes().vec(),
                          at::toString(parameter.value->scalar_type())});
  }
  return arguments;
}

}  // namespace paperlab::train
