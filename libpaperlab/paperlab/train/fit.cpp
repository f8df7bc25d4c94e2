#include "paperlab/train/fit.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/settings_internal.h"
#include "paperlab/train/step_internal.h"

namespace paperlab::train {
namespace {

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
  Run(std::unique_ptr<Model> model, const FitOptions& options, const FitCallbacks& callbacks,
      const Agreement& agreement)
      : model_(std::move(model)),
        options_(options),
        callbacks_(callbacks),
        agreement_(agreement),
        stepper_(*model_, options, callbacks, agreement) {}

  History operator()() {
    check_same_arguments();
    begin();
    history_.num_resumed = num_done();
    while (num_done() < options_.schedule.steps && history_.is_complete) {
      step();
      const bool is_due =
          options_.checkpoint_every > 0 && num_done() % options_.checkpoint_every == 0;
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
    const bool is_whole = !options_.shards_optimizer && !is_torn_;
    const bool is_written = !directory_ || num_written_ == num_done();
    if (!has_directory_ || !is_whole || !is_written || saved_ >= num_done()) {
      return what;
    }
    try {
      stepper_.check_parameters(num_done() - 1);
      if (directory_ || take_over()) {
        write(stepper_.state());
      }
    } catch (const std::exception& error) {
      return what + " (without a checkpoint of them: " + error.what() + ")";
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
    const Json own = arguments_of(options_, *model_);
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

  // Refused in all before anything is removed or changed in one.
  void ask_for_first_batch() {
    agreement_.together([&] {
      first_batch_ = stepper_.batch_of(0);
      return 0.0;
    });
    if (!agreement_.is_alone()) {
      stepper_.check_same(0, first_batch_);
    }
  }

  void begin() {
    const double newest = agreement_.together([&] { return open_directory(); });
    has_directory_ = newest != kNoDirectory;
    if (newest < 0.0 && options_.schedule.steps > 0) {
      ask_for_first_batch();
    }
    Beginning beginning;
    first_does([&] { load(newest, beginning); });
    if (has_directory_ && !agreement_.is_alone()) {
      beginning.read(agreement_.text_of_first(beginning.text()));
    }
    prepare(newest, beginning);
    if (directory_ && newest >= 0.0) {
      beginning.tensors.put_into(*model_);
    }
    stepper_.copy_parameters_of_first();
    history_.records = std::move(beginning.records);
    saved_ = num_written_ = num_done();
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
    beginning.tensors = directory_->read(step, *model_);
  }

  // All of a beginning that can be refused. Data that were moved go back then, in each process.
  void prepare(double newest, const Beginning& beginning) {
    std::optional<std::string> before;
    try {
      agreement_.together([&] {
        if (beginning.data) {
          std::string now = callbacks_.data_state();
          callbacks_.load_data_state(*beginning.data);
          before = std::move(now);
        }
        return 0.0;
      });
      if (newest >= 0.0) {
        stepper_.load_state(beginning.tensors.state);
      }
      const auto num_steps = static_cast<std::int64_t>(beginning.records.size());
      first_does([&] { directory_->open_metrics(num_steps); });
    } catch (...) {
      if (before) {
        callbacks_.load_data_state(*before);
      }
      throw;
    }
  }

  // An optimizer that fails in one process is heard of where all tell of the step.
  void step() {
    StepRecord record = stepper_.gradients(num_done(), std::exchange(first_batch_, {}));
    std::exception_ptr failure;
    try {
      stepper_.update(record);
    } catch (...) {
      failure = std::current_exception();
      is_torn_ = true;
    }
    stepper_.end_step();
    if (!failure) {
      history_.records.push_back(record);
    }
    report(record, failure);
  }

  // Writes the step down, then asks whether to go on.
  void report(const StepRecord& record, const std::exception_ptr& failure) {
    const double answer = agreement_.together([&] {
      if (failure) {
        std::rethrow_exception(failure);
      }
      if (directory_) {
        directory_->append(record);
        num_written_ = num_done();
      }
      const StepReply reply = callbacks_.on_step ? callbacks_.on_step(record) : StepReply();
      if (directory_ && !reply.measures.empty()) {
        directory_->append_measures(record.step, reply.measures);
      }
      if (has_directory_ && !agreement_.is_alone()) {
        data_state_ = data_state();  // later it may be that of a step that is never done
      }
      return reply.is_interrupted ? 2.0 : reply.goes_on ? 0.0 : 1.0;
    });
    history_.is_complete = answer == 0.0;
    history_.is_interrupted = answer == 2.0;
  }

  Json settings() const { return settings_of(options_, *model_); }

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
    directory_->save(num_done(), *model_, state, training, options_.keep);
    saved_ = num_done();
  }

  // In the place of the first process, if it is lost: whether the directory is this run's, is free
  // and lacks the last step.
  bool take_over() {
    if (options_.out.empty() || !RunDirectory::has_metrics(options_.out)) {
      return false;
    }
    std::unique_ptr<RunDirectory> directory;
    try {
      directory = std::make_unique<RunDirectory>(options_.out);
    } catch (const TakenDirectory&) {
      return false;  // the first process lives, or another one was faster
    }
    const std::vector<std::int64_t> steps = directory->checkpoints();
    if ((!steps.empty() && steps.back() >= num_done()) ||
        !directory->complete_metrics(history_.records)) {
      return false;
    }
    directory_ = std::move(directory);
    return true;
  }

  std::unique_ptr<Model> model_;
  const FitOptions& options_;
  const FitCallbacks& callbacks_;
  const Agreement& agreement_;
  Stepper stepper_;
  std::unique_ptr<RunDirectory> directory_{};  // of the first process
  bool has_directory_ = false;                 // of the run
  History history_{};
  Batch first_batch_{};  // of step 0, until it is taken
  std::optional<std::string> data_state_{};
  std::int64_t num_written_ = 0;  // steps in metrics.jsonl
  std::int64_t saved_ = 0;        // the step of the newest checkpoint
  bool is_torn_ = false;          // a step has changed a part of the parameters
};

History run(const FitOptions& options, const FitCallbacks& callbacks, const at::Device& device,
            const std::function<std::unique_ptr<Model>()>& model) {
  const Agreement agreement(options.processes, device);
  std::unique_ptr<Run> run;
  try {
    agreement.together([&] {
      check_options(options, callbacks);
      run = std::make_unique<Run>(model(), options, callbacks, agreement);
      return 0.0;
    });
    return (*run)();
  } catch (const LostProcess& lost) {
    throw LostProcess(c10::str(kFunction, ": ", run ? run->keep_last_step() : "at the start",
                               ": another process has ended or does not answer: ", lost.what()));
  }
}

}  // namespace

History fit(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks) {
  const at::Device device = model.decoder->parameters().front().value->device();
  return run(options, callbacks, device, [&] { return model_of(model); });
}

History fit(nn::HfEncoder& model, const FitOptions& options, const FitCallbacks& callbacks) {
  const at::Device device = model.encoder->parameters().first().device();
  return run(options, callbacks, device, [&] { return model_of(model); });
}

}  // namespace paperlab::train
