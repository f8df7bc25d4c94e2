#include "paperlab/train/run_directory.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"
#include "tests/paperlab/train/small_model.h"

namespace paperlab::train {
namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

TEST(RunDirectory, HasOneOwner) {
  const experiments::Scratch folder;
  {
    const RunDirectory first(folder / "run");
    try {
      const RunDirectory second(folder / "run");
      ADD_FAILURE() << "was not refused";
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("another run is writing there"), std::string::npos);
    }
  }
  const RunDirectory third(folder / "run");
}

TEST(RunDirectory, GoesAgainIfNothingBegan) {
  const experiments::Scratch folder;
  {
    const RunDirectory run(folder / "a/b/run");
  }
  EXPECT_FALSE(fs::exists(folder / "a"));
  fs::create_directory(folder / "a");
  write(folder / "a/others", "x");
  {
    const RunDirectory run(folder / "a/b/run/");
  }
  EXPECT_TRUE(fs::exists(folder / "a/others"));
  EXPECT_FALSE(fs::exists(folder / "a/b"));
  {
    RunDirectory(folder / "a/b/run").open_metrics(0);
  }
  EXPECT_TRUE(fs::exists(folder / "a/b/run/metrics.jsonl"));
  {
    const RunDirectory run(folder / "a/b/run");
  }
  EXPECT_TRUE(fs::exists(folder / "a/b/run/lock"));
}

TEST(RunDirectory, KeepsTheNewestAndIgnoresOthers) {
  const experiments::Scratch folder;
  fs::create_directories(folder / "run/checkpoint-00000007.tmp");
  fs::create_directory(folder / "run/checkpoint-x");
  write(folder / "run/checkpoint-00000008", "a file");
  RunDirectory run(folder / "run");
  EXPECT_FALSE(fs::exists(folder / "run/checkpoint-00000007.tmp"));
  run.open_metrics(0);
  nn::HfDecoder model = small_model();
  for (const std::int64_t step : {1, 2, 10, 123456789}) {
    run.save(step, *model_of(model), NamedState(), {{"step", step}}, 2);
  }
  EXPECT_EQ(run.checkpoints(), (std::vector<std::int64_t>{10, 123456789}));
  EXPECT_EQ(run.training(10)["step"], 10);
  EXPECT_THROW(run.training(2), IoError);
}

TEST(RunDirectory, RestoresEveryBit) {
  const experiments::Scratch folder;
  RunDirectory run(folder / "run");
  nn::HfDecoder saved = small_model(1);
  nn::HfDecoder restored = small_model(2);
  run.save(3, *model_of(saved), NamedState(), {}, 1);
  run.read(3, *model_of(restored)).put_into(*model_of(restored));
  const auto& from = saved.decoder->parameters();
  const auto& into = restored.decoder->parameters();
  for (std::size_t i = 0; i < from.size(); ++i) {
    EXPECT_TRUE(at::equal(*from[i].value, *into[i].value));
  }
}

TEST(RunDirectory, RefusesAnotherModel) {
  const experiments::Scratch folder;
  RunDirectory run(folder / "run");
  nn::HfDecoder saved = small_model(1);
  run.save(3, *model_of(saved), NamedState(), {}, 1);
  nn::HfDecoder doubles = small_model(1, at::kDouble);
  nn::HfDecoder wider = small_model(1, at::kFloat, {{"intermediate_size", 24}});
  nn::HfDecoder other = small_model(1, at::kFloat, {{"rms_norm_eps", 1e-3}});
  for (nn::HfDecoder* model : {&doubles, &wider, &other}) {
    EXPECT_THROW(run.read(3, *model_of(*model)), ValueError);
  }
}

StepRecord record(std::int64_t step) {
  return {step, 1.0 / static_cast<double>(step + 3), 1e-300, 0.1};
}

TEST(Metrics, LinesAfterTheCheckpointComeAgain) {
  const experiments::Scratch folder;
  {
    RunDirectory run(folder / "run");
    run.open_metrics(0);
    for (std::int64_t step = 0; step < 5; ++step) {
      run.append(record(step));
    }
  }
  RunDirectory run(folder / "run");
  const auto kept = run.metrics(3);
  ASSERT_EQ(kept.size(), 3U);
  for (std::int64_t step = 0; step < 3; ++step) {
    EXPECT_EQ(kept[static_cast<std::size_t>(step)], record(step));
  }
  EXPECT_EQ(run.metrics(5).size(), 5U);  // reading changes nothing
  run.open_metrics(3);
  EXPECT_THROW(run.metrics(4), ValueError);
  run.append(record(3));
  EXPECT_EQ(run.metrics(4).back(), record(3));
}

TEST(Metrics, AreCompletedWhereTheirWriterWasLost) {
  const experiments::Scratch folder;
  const std::vector<StepRecord> all = {record(0), record(1), record(2)};
  for (const std::int64_t count : {1, 2, 3, 4}) {
    const std::string path = folder / std::to_string(count);
    EXPECT_FALSE(RunDirectory::has_metrics(path));
    {
      RunDirectory lost(path);
      lost.open_metrics(0);
      for (std::int64_t step = 0; step < count; ++step) {
        lost.append(record(step));
      }
    }
    EXPECT_TRUE(RunDirectory::has_metrics(path));
    RunDirectory next(path);
    EXPECT_FALSE(next.complete_metrics({record(0), record(2), record(2)}));
    EXPECT_EQ(next.complete_metrics(all), count >= 2);  // one step may be missing
    EXPECT_EQ(next.metrics(std::max<std::int64_t>(1, count == 1 ? 1 : 3)).back(),
              record(count == 1 ? 0 : 2));
    EXPECT_THROW(next.metrics(4), ValueError);
  }
}

TEST(Metrics, MustBeARuns) {
  const auto is_accepted = [](const std::string& text) {
    const experiments::Scratch folder;
    fs::create_directory(folder / "run");
    write(folder / "run/metrics.jsonl", text);
    const RunDirectory run(folder / "run");
    try {
      run.check_metrics();
    } catch (const ValueError&) {
      return false;
    }
    return true;
  };
  const std::string line = "{\"step\":0,\"loss\":1.0,\"grad_norm\":1.0,\"learning_rate\":1.0}";
  for (const std::string& text : {std::string(), line + "\n", line, line + "\nx", line.substr(5)}) {
    EXPECT_EQ(is_accepted(text), text != line.substr(5)) << text;
  }
  EXPECT_FALSE(is_accepted("\n" + line));
  EXPECT_FALSE(is_accepted("step,loss\n"));
}

TEST(Metrics, RefusesWhatIsNoRecord) {
  for (const char* text :
       {"", "{\"step\":0,\"loss\":1.0,\"grad_norm\":1.0,\"learning_rate\":1.0}", "[]\n", "x\n",
        "{\"step\":1,\"loss\":1.0,\"grad_norm\":1.0,\"learning_rate\":1.0}\n",
        "{\"step\":0,\"loss\":null,\"grad_norm\":1.0,\"learning_rate\":1.0}\n"}) {
    const experiments::Scratch folder;
    fs::create_directory(folder / "run");
    write(folder / "run/metrics.jsonl", text);
    RunDirectory run(folder / "run");
    EXPECT_THROW(run.metrics(1), ValueError) << text;
    EXPECT_THROW(run.open_metrics(1), ValueError) << text;
  }
}

TEST(RunDirectory, ClearRemovesItsOwnFilesAlone) {
  const experiments::Scratch folder;
  RunDirectory run(folder / "run");
  run.open_metrics(0);
  run.append(record(0));
  nn::HfDecoder model = small_model();
  run.save(1, *model_of(model), NamedState(), {}, 1);
  write(folder / "run/notes.txt", "mine");
  run.clear();
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder / "run")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"lock", "notes.txt"}));
}

}  // namespace
}  // namespace paperlab::train
