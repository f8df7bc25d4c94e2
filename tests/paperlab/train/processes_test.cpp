// Runs of several threads that stand for processes.
#include "paperlab/train/processes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/fit.h"
#include "tests/experiments/scratch.h"
#include "tests/paperlab/train/small_model.h"
#include "tests/paperlab/train/thread_processes.h"
#include "tests/support/limited_memory.h"

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

TEST(Processes, TwoTrainAnEncoderAsOne) {
  const auto data = [](std::int64_t step) { return labelled(step); };
  std::vector<nn::HfEncoder> models = {small_encoder(1), small_encoder(2)};
  std::vector<History> histories(2);
  const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
    const auto rank = static_cast<std::size_t>(processes->rank());
    FitOptions given = options();
    given.processes = processes;
    histories[rank] = fit(models[rank], given, {data});
  });
  EXPECT_EQ(errors, std::vector<std::exception_ptr>(2));
  nn::HfEncoder one = small_encoder(1);
  FitOptions given = options();
  given.accumulate = 2;
  History expected;
  in_threads(1, [&](const auto&) { expected = fit(one, given, {data}); });  // of as many threads
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(histories[rank].records, expected.records);
    for (std::size_t i = 0; i < one.encoder->parameters().list().size(); ++i) {
      EXPECT_TRUE(at::equal(*models[rank].encoder->parameters().list()[i].value,
                            *one.encoder->parameters().list()[i].value));
    }
  }
}

TEST(Processes, ARefusedCallLeavesEveryModel) {
  for (const bool is_bad : {true, false}) {  // rank 1's batch: not readable, or another one
    std::vector<nn::HfDecoder> models = {small_model(1), small_model(2)};
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      FitOptions given = options();
      given.processes = processes;
      fit(models[static_cast<std::size_t>(processes->rank())], given, {[&](std::int64_t step) {
            const bool is_other = processes->rank() == 1;
            return is_other && is_bad ? at::Tensor() : rows_of(step + (is_other ? 1 : 0));
          }});
    });
    for (std::size_t rank = 0; rank < 2; ++rank) {
      EXPECT_NE(errors[rank], nullptr);
      EXPECT_TRUE(same_values(models[rank], small_model(rank + 1)));
    }
  }
}

TEST(Processes, OtherLabelsOrTypesAreAnotherBatch) {
  for (at::Tensor Batch::* const other : {&Batch::labels, &Batch::token_type_ids}) {
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      nn::HfEncoder model = small_encoder();
      FitOptions given = options();
      given.processes = processes;
      fit(model, given, {[&](std::int64_t step) {
            Batch batch = labelled(step);
            if (step == 1 && processes->rank() == 1) {
              batch.*other = at::zeros_like(batch.*other);
            }
            return batch;
          }});
    });
    for (const std::exception_ptr& error : errors) {
      ASSERT_NE(error, nullptr);
      EXPECT_THROW(std::rethrow_exception(error), ValueError);
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

// Whose next sum never begins: as far as the others see it has been killed.
class DyingProcesses final : public Processes {
 public:
  explicit DyingProcesses(std::shared_ptr<Processes> own) : own_(std::move(own)) {}

  std::int64_t rank() const override { return own_->rank(); }
  std::int64_t size() const override { return own_->size(); }
  Wait start_sum(const at::Tensor& x) override {
    if (is_dead) {
      throw std::runtime_error("killed");
    }
    return own_->start_sum(x);
  }
  Wait start_copy(const at::Tensor& x, std::int64_t from) override {
    return own_->start_copy(x, from);
  }

  bool is_dead = false;

 private:
  std::shared_ptr<Processes> own_;
};

TEST(Processes, AnotherOneKeepsTheLastStepWhereTheFirstIsLost) {
  const experiments::Scratch folder;
  const std::string out = folder / "run";
  const auto errors = in_threads(3, [&](const std::shared_ptr<Processes>& processes) {
    const auto dying = std::make_shared<DyingProcesses>(processes);
    nn::HfDecoder model = small_model();
    FitOptions given = options();
    given.processes = dying;
    given.out = out;
    fit(model, given, {[&](std::int64_t step) {
          dying->is_dead = step == 3 && processes->rank() == 0;
          return rows_of(step);
        }});
  });
  EXPECT_EQ(message_of<std::runtime_error>(errors[0]), "killed");
  for (const std::size_t rank : {1, 2}) {
    EXPECT_EQ(
        message_of<LostProcess>(errors[rank]),
        "fit: after 3 steps: another process has ended or does not answer: a thread was lost");
  }
  EXPECT_TRUE(fs::exists(out + "/checkpoint-00000003"));
  FitOptions given = options();
  given.out = out;
  nn::HfDecoder again = small_model(5);
  const History rest = fit(again, given, {rows_of});
  EXPECT_EQ(rest.num_resumed, 3);
  nn::HfDecoder whole = small_model();
  const History expected = fit(whole, options(), {rows_of});
  for (std::size_t i = 0; i < kSteps; ++i) {
    EXPECT_NEAR(rest.records[i].loss, expected.records[i].loss, 1e-6);
  }
}

// Has no memory for what comes after the sum of a step's losses: the optimizer's turn.
class PoorProcesses final : public Processes {
 public:
  explicit PoorProcesses(std::shared_ptr<Processes> own) : own_(std::move(own)) {}

  std::int64_t rank() const override { return own_->rank(); }
  std::int64_t size() const override { return own_->size(); }
  Wait start_sum(const at::Tensor& x) override {
    const bool is_of_losses = x.scalar_type() == at::kDouble && x.numel() > 10;
    return [wait = own_->start_sum(x), is_poor = is_of_losses && rank() == 1] {
      wait();
      if (is_poor) {
        refuse_allocation(0, kCpuMemoryError);
      }
    };
  }
  Wait start_copy(const at::Tensor& x, std::int64_t from) override {
    return own_->start_copy(x, from);
  }

 private:
  std::shared_ptr<Processes> own_;
};

TEST(Processes, AnOptimizerWithoutMemoryEndsAll) {
  for (const bool shards : {false, true}) {
    const experiments::Scratch folder;
    const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
      nn::HfDecoder model = small_model();
      FitOptions given = options();
      given.processes = std::make_shared<PoorProcesses>(processes);
      given.shards_optimizer = shards;
      given.out = folder / "run";
      fit(model, given, {rows_of});
    });
    refuse_allocation(-1, kCpuMemoryError);
    const std::string what = "this device has no memory left";
    const bool is_first = message_of<IoError>(errors[0]).find("process 1") == std::string::npos;
    const std::size_t poor = is_first ? 0 : 1;  // both allocate at the same time
    EXPECT_NE(message_of<c10::Error>(errors[poor]).find(what), std::string::npos);
    EXPECT_EQ(message_of<IoError>(errors[1 - poor]),
              "fit: process " + std::to_string(poor) + " of 2 failed: " + what);
    EXPECT_TRUE(RunDirectory(folder / "run").checkpoints().empty());
  }
}

TEST(Processes, ARunThatCannotGoOnLeavesModelsAndData) {
  const experiments::Scratch folder;
  FitOptions given = options();
  given.out = folder / "run";
  std::string state = "begun";
  const FitCallbacks stops = {rows_of, [](const StepRecord&) { return StepReply{false}; },
                              [&] { return state; }, [&](const std::string& to) { state = to; }};
  nn::HfDecoder begun = small_model();
  fit(begun, given, stops);
  std::vector<nn::HfDecoder> models = {small_model(5), small_model(6)};
  std::vector<std::string> states = {"first", "second"};
  const auto errors = in_threads(2, [&](const std::shared_ptr<Processes>& processes) {
    const auto rank = static_cast<std::size_t>(processes->rank());
    FitOptions own = given;
    own.processes = processes;
    fit(models[rank], own,
        {rows_of,
         {},
         [&, rank] { return states[rank]; },
         [&, rank](const std::string& to) {
           if (rank == 1 && to == "begun") {
             throw IoError("the data are gone");
           }
           states[rank] = to;
         }});
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(message_of<IoError>(errors[rank]), "the data are gone");
    EXPECT_TRUE(same_values(models[rank], small_model(rank + 5)));
    EXPECT_EQ(states[rank], rank == 0 ? "first" : "second");
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
