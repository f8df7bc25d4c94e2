// Runs of several threads that stand for processes.
#include "paperlab/train/processes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/fit.h"
#include "tests/experiments/scratch.h"
#include "tests/paperlab/train/small_model.h"
#include "tests/paperlab/train/thread_processes.h"

namespace paperlab::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSteps = 5;

at::Tensor rows_of(std::int64_t step) { return counting(step, 12); }

FitOptions options(OptimizerKind kind = OptimizerKind::kAdamW) {
  FitOptions given;
  given.schedule.learning_rate = 0.01;
  given.schedule.steps = kSteps;
  given.optimizer.kind = kind;
  given.clip_norm = 0.5;
  given.bucket_bytes = 256;  // some of the parameters fill one alone
  return given;
}

struct Result {
  nn::HfDecoder model = small_model();
  History history{};
};

std::vector<Result> fit_in_threads(std::int64_t size, const FitOptions& given,
                                   const FitCallbacks& callbacks = {rows_of}) {
  std::vector<Result> results(static_cast<std::size_t>(size));
  for (std::size_t i = 1; i < results.size(); ++i) {
    results[i].model = small_model(i + 7);  // all begin with the first one's values
  }
  const auto errors = in_threads(size, [&](const std::shared_ptr<Processes>& processes) {
    Result& result = results[static_cast<std::size_t>(processes->rank())];
    FitOptions own = given;
    own.processes = processes;
    result.history = fit(result.model, own, callbacks);
  });
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
  return results;
}

bool same_values(const nn::HfDecoder& one, const nn::HfDecoder& other) {
  const auto& a = one.decoder->parameters();
  const auto& b = other.decoder->parameters();
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!at::equal(*a[i].value, *b[i].value)) {
      return false;
    }
  }
  return true;
}

double largest_difference(const nn::HfDecoder& one, const nn::HfDecoder& other) {
  const at::NoGradGuard no_grad;
  double most = 0.0;
  for (std::size_t i = 0; i < one.decoder->parameters().size(); ++i) {
    const at::Tensor& a = *one.decoder->parameters()[i].value;
    const at::Tensor& b = *other.decoder->parameters()[i].value;
    most = std::max(most, (a - b).abs().max().item<double>());
  }
  return most;
}

TEST(Processes, TwoAddUpWhatOneAccumulates) {
  for (const auto kind : {OptimizerKind::kAdamW, OptimizerKind::kSgd, OptimizerKind::kAdafactor}) {
    FitOptions given = options(kind);
    std::vector<Result> two = fit_in_threads(2, given);
    given.shards_optimizer = true;
    const std::vector<Result> shards = fit_in_threads(2, given);
    given.accumulate = 2;
    given.shards_optimizer = false;
    Result one;
    one.history = fit(one.model, given, {rows_of});
    for (const Result& result : {two[0], two[1], shards[0], shards[1]}) {
      EXPECT_EQ(result.history.records, one.history.records);
      EXPECT_TRUE(same_values(result.model, one.model));
    }
  }
}

TEST(Processes, ThreeTrainAsOneToRounding) {
  FitOptions given = options(OptimizerKind::kSgd);
  const std::vector<Result> three = fit_in_threads(3, given);
  given.accumulate = 2;
  const std::vector<Result> parts = fit_in_threads(3, given);
  Result one;
  given.accumulate = 1;
  one.history = fit(one.model, given, {rows_of});
  for (const std::vector<Result>& results : {three, parts}) {
    EXPECT_EQ(results[0].history.records, results[2].history.records);
    EXPECT_TRUE(same_values(results[0].model, results[1].model));
    EXPECT_TRUE(same_values(results[0].model, results[2].model));
    EXPECT_LT(largest_difference(results[0].model, one.model), 1e-6);
    for (std::size_t i = 0; i < kSteps; ++i) {
      EXPECT_NEAR(results[0].history.records[i].loss, one.history.records[i].loss, 1e-6);
    }
  }
}

std::string content(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST(Processes, ShardedCheckpointsAreThoseOfAll) {
  const experiments::Scratch folder;
  for (const bool shards : {false, true}) {
    FitOptions given = options();
    given.shards_optimizer = shards;
    given.out = folder / (shards ? "shards" : "whole");
    given.checkpoint_every = 2;
    fit_in_threads(2, given);
  }
  for (const char* name :
       {"metrics.jsonl", "checkpoint-00000005/model.safetensors",
        "checkpoint-00000005/optimizer.safetensors", "checkpoint-00000005/training.json"}) {
    const std::string whole = content(fs::path(folder / "whole") / name);
    EXPECT_EQ(content(fs::path(folder / "shards") / name), whole) << name;
    EXPECT_FALSE(whole.empty()) << name;
  }
}

TEST(Processes, AnotherNumberGoesOn) {
  const experiments::Scratch folder;
  const std::vector<Result> whole = fit_in_threads(2, options());
  for (const bool shards : {false, true}) {
    FitOptions given = options();
    given.shards_optimizer = shards;
    given.out = folder / (shards ? "shards" : "whole");
    const std::vector<std::int64_t> sizes = {2, 3, 1, 2};
    for (std::size_t part = 0; part < sizes.size(); ++part) {
      const auto last = static_cast<std::int64_t>(part);
      const FitCallbacks stopping = {
          rows_of, [last](const StepRecord& record) { return StepReply{record.step < last}; }};
      const bool is_end = part + 1 == sizes.size();
      const std::vector<Result> some =
          fit_in_threads(sizes[part], given, is_end ? FitCallbacks{rows_of} : stopping);
      EXPECT_EQ(some.back().history.num_resumed, last);
      EXPECT_EQ(some.back().history.records, some.front().history.records);
      if (is_end) {
        // Rounding of another order of the sums, which AdamW's division enlarges.
        EXPECT_LT(largest_difference(some.back().model, whole[0].model), 2e-5);
        EXPECT_TRUE(same_values(some.back().model, some.front().model));
      }
    }
  }
}

template <class E>
std::string message_of(const std::exception_ptr& error) {
  try {
    if (error) {
      std::rethrow_exception(error);
    }
    return "nothing";
  } catch (const E& right) {
    return right.what();
  } catch (const std::exception& other) {
    return std::string("of another type: ") + other.what();
  }
}

TEST(Processes, ALossThatIsNotFiniteEndsAllWithOneError) {
  std::vector<nn::HfDecoder> models = {small_model(), small_model(), small_model()};
  const auto errors = in_threads(3, [&](const std::shared_ptr<Processes>& processes) {
    nn::HfDecoder& model = models[static_cast<std::size_t>(processes->rank())];
    FitOptions given = options();
    given.processes = processes;
    fit(model, given, {[&](std::int64_t step) {
          if (step == 2 && processes->rank() == 1) {
            const at::NoGradGuard no_grad;
            model.decoder->parameters()[1].value->fill_(std::numeric_limits<double>::quiet_NaN());
          }
          return rows_of(step);
        }});
  });
  const std::string first = message_of<ValueError>(errors[0]);
  EXPECT_EQ(first.rfind("fit: step 2: the loss must be finite, got nan; parameter '", 0), 0U)
      << first;
  EXPECT_EQ(message_of<ValueError>(errors[1]), first);
  EXPECT_EQ(message_of<ValueError>(errors[2]), first);
  EXPECT_TRUE(same_values(models[0], models[2]));
  for (const auto& parameter : models[0].decoder->parameters()) {
    EXPECT_FALSE(parameter.value->grad().defined());
  }
}

TEST(Processes, AnExceptionOfOneEndsAll) {
  struct Stop {};
  for (const bool is_data : {true, false}) {
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      nn::HfDecoder model = small_model();
      FitOptions given = options();
      given.processes = processes;
      const auto check = [&](std::int64_t step) {
        if (step == 1 && processes->rank() == 1) {
          throw Stop();
        }
      };
      fit(model, given,
          {[&](std::int64_t step) {
             check(is_data ? step : 0);
             return rows_of(step);
           },
           [&](const StepRecord& record) {
             check(is_data ? 0 : record.step);
             return StepReply();
           }});
    });
    EXPECT_EQ(message_of<IoError>(errors[0]), "fit: process 1 of 2 failed: an exception");
    EXPECT_THROW(std::rethrow_exception(errors[1]), Stop);
  }
}

TEST(Processes, ALostOneLeavesACheckpointOfTheLastStep) {
  const experiments::Scratch folder;
  for (const bool shards : {false, true}) {
    const std::string out = folder / (shards ? "shards" : "whole");
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      nn::HfDecoder model = small_model();
      FitOptions given = options();
      given.processes = processes;
      given.out = out;
      given.shards_optimizer = shards;
      given.checkpoint_every = 2;
      fit(model, given, {[&](std::int64_t step) {
            if (step == 3 && processes->rank() == 1) {
              throw LostProcess("ended");
            }
            return rows_of(step);
          }});
    });
    EXPECT_EQ(
        message_of<LostProcess>(errors[0]),
        "fit: after 3 steps: another process has ended or does not answer: a thread was lost");
    EXPECT_EQ(fs::exists(out + "/checkpoint-00000003"), !shards);
    EXPECT_TRUE(fs::exists(out + "/checkpoint-00000002"));
    FitOptions given = options();
    given.out = out;
    nn::HfDecoder again = small_model(5);
    EXPECT_EQ(fit(again, given, {rows_of}).num_resumed, shards ? 2 : 3);
  }
}

TEST(Processes, OtherArgumentsAndBatchesAreRefusedInAll) {
  const auto refused = [](const auto& change, bool has_other_batch, std::int64_t rows,
                          const std::string& message) {
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      nn::HfDecoder model = small_model();
      FitOptions given = options();
      given.processes = processes;
      if (processes->rank() == 1) {
        change(given);
      }
      const std::int64_t shift = has_other_batch && processes->rank() == 1 ? 1 : 0;
      fit(model, given, {[=](std::int64_t step) { return counting(step + shift, rows); }});
    });
    for (const std::exception_ptr& error : errors) {
      EXPECT_EQ(message_of<ValueError>(error), "fit: " + message);
    }
  };
  const auto nothing = [](FitOptions& /*o*/) {};
  refused([](FitOptions& o) { o.schedule.learning_rate = 0.02; }, false, 12,
          "learning_rate must be the same in all processes, got another one in process 1");
  refused([](FitOptions& o) { o.keep = 0; }, false, 12, "keep must be >= 1, got 0");
  refused(nothing, true, 12,
          "data(0) must return the same global batch in every process, got another one in process "
          "1");
  refused(nothing, false, 5,
          "accumulate times the 2 processes must divide the batch's rows (5), got 1");
}

TEST(Agreement, ExchangesTextsOfAnyLength) {
  const auto errors = in_threads(3, [&](const std::shared_ptr<Processes>& processes) {
    const Agreement agreement(processes, at::kCPU);
    const std::vector<std::string> own = {"", std::string("a\0b", 3), "long \xff text"};
    EXPECT_EQ(agreement.texts(own[static_cast<std::size_t>(agreement.rank())]), own);
    EXPECT_EQ(agreement.texts(""), std::vector<std::string>(3));
    EXPECT_EQ(agreement.text_of_first(agreement.is_first() ? own[2] : ""), own[2]);
    EXPECT_EQ(agreement.text_of_first(agreement.is_first() ? "" : "other"), "");
    EXPECT_EQ(agreement.together([&] { return static_cast<double>(agreement.rank() % 2); }), 1.0);
    EXPECT_EQ(agreement.together([&] { return agreement.is_first() ? -1.0 : -2.0; }), -1.0);
  });
  EXPECT_EQ(errors, std::vector<std::exception_ptr>(3));
}

TEST(Agreement, KeepsTheTypesOfErrors) {
  const auto thrown_by_first = [](const std::function<void()>& work) {
    return in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      const Agreement agreement(processes, at::kCPU);
      agreement.together([&] {
        if (agreement.is_first()) {
          work();
        }
        return 0.0;
      });
    })[1];
  };
  EXPECT_EQ(message_of<DTypeError>(thrown_by_first([] { throw DTypeError("no | float"); })),
            "no | float");
  const std::exception_ptr error = thrown_by_first([] { throw IoError("full", 28); });
  EXPECT_EQ(message_of<IoError>(error), "full");
  try {
    std::rethrow_exception(error);
  } catch (const IoError& full) {
    EXPECT_EQ(full.code(), 28);
  }
  EXPECT_EQ(message_of<IoError>(thrown_by_first([] { throw std::runtime_error("first\nsecond"); })),
            "fit: process 0 of 2 failed: first");
}

TEST(ProcessesOfGroup, AreRefusedWhereThereIsNone) {
  EXPECT_THROW(processes_of_group("nowhere"), ValueError);
}

}  // namespace
}  // namespace paperlab::train
