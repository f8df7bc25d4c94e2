#include "paperlab/regular_language/train.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/common/backend.h"
#include "kernels/common/cuda/context.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/dynamics_internal.h"
#include "paperlab/regular_language/optimizer_internal.h"

namespace paperlab::regular_language {
namespace {

// Largest max_length for which History::w is filled.
constexpr int kMaxLengthOfW = 512;
// Updates between two calls of on_step on a GPU: milliseconds at most for short strings.
constexpr std::int64_t kLargestBatch = 256;

template <class T>
std::string text(T value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

template <class T>
void check(bool condition, const std::string& required, T got) {
  require<ValueError>(condition, "train", required, text(got));
}

void validate_lengths(const TrainOptions& options) {
  int longest = 0;
  switch (options.method) {
    case Method::kTwoClass:
      longest = 4096;
      break;
    case Method::kStrings:
      longest = 20;
      break;
    case Method::kFold:
      longest = 24;
      break;
  }
  if (options.task == Task::kParityCot) {
    check(options.base_length >= 2, "base_length must be at least 2", options.base_length);
    if (options.method == Method::kFold) {
      check(options.base_length <= 16, "base_length must be in 2..16 for method fold",
            options.base_length);
      longest = 30;
    }
    check(options.max_length == 2LL * options.base_length - 2,
          "max_length must be 2 * base_length - 2 = " + text(2LL * options.base_length - 2) +
              " for task parity_cot",
          options.max_length);
    check(options.regularizer_length <= options.max_length,
          "regularizer_length must be at most max_length", options.regularizer_length);
  }
  check(options.max_length >= 1 && options.max_length <= longest,
        "max_length must be in 1.." + text(longest) + " for this method", options.max_length);
}

void validate_method(const TrainOptions& options) {
  const bool is_paper = options.regularizer_length < 0 && !options.uniform_weights &&
                        options.embedding == Embedding::kOrthonormal &&
                        options.task != Task::kParity;
  check(options.method != Method::kTwoClass || options.init_std == 0.0,
        "init_std must be 0 for method two_class", options.init_std);
  require<ValueError>(options.method != Method::kTwoClass || is_paper, "train",
                      "method two_class serves the paper's objectives and embedding alone",
                      "a control");
  require<ValueError>(options.method != Method::kFold || options.task != Task::kParity, "train",
                      "task parity needs method strings", "fold");
  check(options.embedding != Embedding::kGaussian ||
            (options.embedding_dim >= 1 && options.embedding_dim <= 4096),
        "embedding_dim must be in 1..4096 for gaussian embeddings", options.embedding_dim);
}

void validate_device(const TrainOptions& options) {
  if (options.device == Device::kCpu) {
    return;
  }
  require<ValueError>(options.method != Method::kTwoClass && options.optimizer == Optimizer::kGd &&
                          options.embedding == Embedding::kOrthonormal,
                      "train",
                      "device cuda serves methods strings and fold, optimizer gd and orthonormal "
                      "embeddings",
                      "another one");
  bool is_usable = false;
  if constexpr (kernels::kHasCuda) {
    is_usable = kernels::has_usable_gpu();
  }
  if (!is_usable) {
    throw UnsupportedError("train: device cuda needs a build with CUDA and a GPU");
  }
}

std::unique_ptr<Dynamics> make_dynamics(const TrainOptions& options) {
  if (options.method == Method::kTwoClass) {
    return make_two_class(options);
  }
  if constexpr (kernels::kHasCuda) {
    if (options.device == Device::kCuda) {
      return make_exhaustive_cuda(options);
    }
  }
  return make_exhaustive(options, default_executor());
}

// The default record is cut to the steps that are reached; one of the user's own is not.
std::vector<std::int64_t> reached_record(const TrainOptions& options) {
  return options.record == TrainOptions{}.record ? default_record(options.num_steps)
                                                 : options.record;
}

class Trainer {
 public:
  explicit Trainer(const TrainOptions& options)
      : options_(options),
        dynamics_(make_dynamics(options)),
        at_(dynamics_->initial()),
        u_multiplicity_(dynamics_->u_multiplicity()),
        w_multiplicity_(dynamics_->w_multiplicity()),
        optimizer_(options.optimizer, at_) {}

  History run() {
    std::int64_t step = 0;
    while (true) {
      if (next_record_ < options_.record.size() && options_.record[next_record_] == step) {
        record(step);
        ++next_record_;
      }
      if (step == options_.num_steps) {
        break;
      }
      if (options_.on_step) {
        options_.on_step(step);
      }
      step += update(step);
    }
    if (options_.max_length <= kMaxLengthOfW) {
      history_.w = dynamics_->full_w(at_);
    }
    return std::move(history_);
  }

 private:
  StepSizes sizes_at(std::int64_t step) const {
    const bool is_frozen =
        options_.freeze_attention_from >= 0 && step >= options_.freeze_attention_from;
    const double boost = options_.boost == 0.0 ? options_.attention_scale : options_.boost;
    const double multiplier = is_frozen ? 0.0 : step < options_.boost_steps ? boost : 1.0;
    return {options_.learning_rate, options_.learning_rate * multiplier};
  }

  // Number of updates from `step` on with the same step sizes and without a record between them.
  std::int64_t num_alike(std::int64_t step) const {
    std::int64_t end = std::min(step + kLargestBatch, options_.num_steps);
    if (next_record_ < options_.record.size()) {
      end = std::min(end, options_.record[next_record_]);
    }
    for (const std::int64_t change : {options_.boost_steps, options_.freeze_attention_from}) {
      end = change > step ? std::min(end, change) : end;
    }
    return end - step;
  }

  // Returns the number of updates done.
  std::int64_t update(std::int64_t step) {
    const StepSizes sizes = sizes_at(step);
    if (options_.device == Device::kCuda) {
      const std::int64_t count = num_alike(step);
      const std::int64_t not_finite = dynamics_->descend(at_, sizes, count);
      require_finite(not_finite < 0, step + not_finite);
      return count;
    }
    dynamics_->gradient(at_, gradient_);
    const double of_gradient =
        options_.optimizer == Optimizer::kNormalizedGd
            ? std::hypot(norm(gradient_.u, u_multiplicity_), norm(gradient_.w, w_multiplicity_))
            : 0.0;
    optimizer_.update(gradient_, of_gradient, sizes.u, sizes.w, at_);
    // u gets a share of every string's gradient, so a NaN anywhere shows here at once.
    require_finite(
        std::all_of(at_.u.begin(), at_.u.end(), [](double x) { return std::isfinite(x); }),
        step + 1);
    return 1;
  }

  static void require_finite(bool is_finite, std::int64_t step) {
    if (!is_finite) {
      throw ValueError(
          "train: learning_rate must be small enough that the loss stays finite, got a loss that "
          "is "
          "not finite at step " +
          text(step));
    }
  }

  void record(std::int64_t step) {
    const Evaluation evaluation = dynamics_->evaluate(at_);
    require_finite(std::isfinite(evaluation.loss), step);
    history_.step.push_back(step);
    history_.loss.push_back(evaluation.loss);
    history_.accuracy.push_back(evaluation.accuracy);
    history_.min_margin.push_back(evaluation.min_margin);
    history_.u.push_back(dynamics_->full_u(at_));
    history_.u_norm.push_back(norm(at_.u, u_multiplicity_));
    history_.w_norm.push_back(norm(at_.w, w_multiplicity_));
    if (options_.record_w) {
      history_.w_record.push_back(dynamics_->full_w(at_));
    }
  }

  TrainOptions options_;
  std::unique_ptr<Dynamics> dynamics_;
  Parameters at_;
  Parameters gradient_;
  std::vector<double> u_multiplicity_;
  std::vector<double> w_multiplicity_;
  OptimizerState optimizer_;
  std::size_t next_record_ = 0;
  History history_;
};

}  // namespace

std::int64_t Dynamics::descend(Parameters&, StepSizes, std::int64_t) {
  throw UnsupportedError("train: this method moves one step at a time");
}

double norm(const std::vector<double>& x, const std::vector<double>& multiplicity) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += (multiplicity.empty() ? 1.0 : multiplicity[i]) * x[i] * x[i];
  }
  return std::sqrt(sum);
}

std::vector<std::int64_t> default_record(std::int64_t num_steps) {
  std::vector<std::int64_t> record = {0, 100, 600, 1000, 2000};
  std::erase_if(record, [=](std::int64_t step) { return step > num_steps; });
  return record;
}

void validate(const TrainOptions& options) {
  const auto positive = [](double x) { return std::isfinite(x) && x > 0.0; };
  check(positive(options.learning_rate), "learning_rate must be finite and > 0",
        options.learning_rate);
  check(positive(options.attention_scale), "attention_scale must be finite and > 0",
        options.attention_scale);
  check(std::isfinite(options.init_std) && options.init_std >= 0.0,
        "init_std must be finite and >= 0", options.init_std);
  check(options.boost == 0.0 || positive(options.boost), "boost must be finite and >= 0",
        options.boost);
  check(options.boost_steps >= 0, "boost_steps must be >= 0", options.boost_steps);
  check(options.num_steps >= 0, "num_steps must be >= 0", options.num_steps);
  std::int64_t previous = -1;
  for (const std::int64_t step : reached_record(options)) {
    check(step > previous && step <= options.num_steps,
          "record must be strictly increasing within 0.." + text(options.num_steps), step);
    previous = step;
  }
  validate_lengths(options);
  validate_method(options);
  validate_device(options);
}

History train(const TrainOptions& options) {
  validate(options);
  TrainOptions reached = options;
  reached.record = reached_record(options);
  return Trainer(reached).run();
}

}  // namespace paperlab::regular_language
