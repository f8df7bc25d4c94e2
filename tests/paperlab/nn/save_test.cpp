#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/io/file.h"
#include "paperlab/nn/save.h"
#include "tests/paperlab/nn/checkpoint_cases.h"

namespace paperlab::nn {
namespace {

namespace fs = std::filesystem;

class SaveTest : public testing::Test {
 protected:
  SaveTest() {
    Json config = llama_config();
    config["rms_norm_eps"] = 9.999999747378752e-06;
    config["rope_theta"] = 10000.0;
    scratch_.write("in/config.json", config.dump());
    scratch_.write("in/generation_config.json", R"({"eos_token_id": [3, 4], "top_p": 0.95})");
    scratch_.write("in/tokenizer.json", "{\"a\": \"\xC3\xA9\"}\n\n");
    scratch_.write("in/merges.txt", std::string("a\r\nb\0c", 6));
    tensors_ = values(read_hf_config("config.json", config));
    write_weights(scratch_ / "in", tensors_);
  }

  // What loading a model and saving it asks for.
  SaveRequest request(const std::string& from) const {
    const HfDirectory directory = read_hf_directory(from);
    Weights weights = map_weights(io::Checkpoint(from), directory.model);
    SaveRequest request;
    request.directory = scratch_ / "out";
    request.config = directory.config;
    request.generation_config = directory.generation_config;
    request.tensors = std::move(weights.tensors);
    request.file_names = std::move(weights.file_names);
    request.files = directory.tokenizer_files;
    return request;
  }

  void expect_same(const std::string& directory) const {
    const HfDirectory in = read_hf_directory(scratch_ / "in");
    const HfDirectory out = read_hf_directory(directory);
    EXPECT_EQ(out.config, in.config);
    EXPECT_EQ(out.generation_config, in.generation_config);
    EXPECT_EQ(out.tokenizer_files.size(), in.tokenizer_files.size());
    auto files = contents(directory);
    const auto expected = contents(scratch_ / "in");
    for (const char* name : {"tokenizer.json", "merges.txt"}) {
      EXPECT_EQ(files[name], expected.at(name));
    }
    expect_equal(map_weights(io::Checkpoint(directory), out.model).tensors, tensors_);
  }

  Scratch scratch_;
  Tensors tensors_;
};

TEST_F(SaveTest, WhatIsSavedIsWhatWasLoaded) {
  save(request(scratch_ / "in"));
  expect_same(scratch_ / "out");
  const auto files = contents(scratch_ / "out");
  EXPECT_EQ(files.size(), 5U);
  EXPECT_EQ(io::Checkpoint(scratch_ / "out").metadata(), (io::Metadata{{"format", "pt"}}));
  save(request(scratch_ / "out"));  // again, and the same bytes
  EXPECT_EQ(contents(scratch_ / "out"), files);
}

TEST_F(SaveTest, ParentsAreMade) {
  SaveRequest deep = request(scratch_ / "in");
  deep.directory = scratch_ / "a/b/c/";
  save(deep);
  expect_same(scratch_ / "a/b/c");
}

TEST_F(SaveTest, TheDirectoryMayBeTheOneThatTheTensorsAreMappedFrom) {
  SaveRequest own = request(scratch_ / "in");
  own.directory = scratch_ / "in";
  const Tensors before = tensors_;
  save(own);
  expect_same(scratch_ / "in");
  for (auto& [name, tensor] : own.tensors) {
    tensor.add_(1.0);
    tensors_[name] = tensors_[name].add(1.0);
  }
  own.max_shard_bytes = 600;
  save(own);
  expect_same(scratch_ / "in");
  EXPECT_FALSE(scratch_.has("in/model.safetensors"));
  EXPECT_TRUE(scratch_.has("in/model.safetensors.index.json"));
  own.max_shard_bytes = io::kMaxShardBytes;
  save(own);
  expect_same(scratch_ / "in");
  EXPECT_EQ(contents(scratch_ / "in").size(), 5U);
}

TEST_F(SaveTest, AnEarlierCheckpointIsReplacedWhole) {
  SaveRequest first = request(scratch_ / "in");
  first.max_shard_bytes = 600;
  save(first);
  scratch_.write("out/README.md", "mine");
  SaveRequest second = request(scratch_ / "in");
  second.generation_config.reset();
  second.files.clear();
  save(second);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : contents(scratch_ / "out")) {
    names.push_back(name);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"README.md", "config.json", "merges.txt",
                                             "model.safetensors", "tokenizer.json"}));
}

TEST_F(SaveTest, TensorsOfAnyStridesAreWritten) {
  SaveRequest strided = request(scratch_ / "in");
  const at::Tensor base = at::arange(40'000'000, at::kInt).to(at::kBFloat16).view({5000, 8000});
  strided.tensors = {{"transposed", base.t()},
                     {"columns", base.slice(1, 0, 8000, 3)},
                     {"expanded", at::ones({1}).expand({3, 2})},
                     {"leaf", at::ones({2, 2}).t().set_requires_grad(true)},
                     {"scalar", at::full({}, 2.5, at::kDouble)},
                     {"of_many", base[4][7]},
                     {"negative_view", base.slice(0, 0, 2)._neg_view()},
                     {"none", at::zeros({0, 4})},
                     {"none_strided", at::zeros({4, 0}).t()}};
  save(strided);
  const io::Checkpoint read(scratch_ / "out");
  for (const auto& [name, tensor] : strided.tensors) {
    const io::TensorEntry& entry = *read.at(name).entry;
    EXPECT_EQ(entry.shape, tensor.sizes().vec());
    at::Tensor got = at::zeros(tensor.sizes(), tensor.options().requires_grad(false));
    read.at(name).file->file().read({entry.offset, entry.num_bytes, got.data_ptr()});
    EXPECT_TRUE(at::equal(got, tensor.detach())) << name;
  }
}

TEST_F(SaveTest, OtherNamesAndCopiesAreKept) {
  Json config = gpt_neox_config();
  config["tie_word_embeddings"] = true;
  const HfModel model = read_hf_config("config.json", config);
  Tensors tensors = values(model);
  tensors["lm_head.weight"] = tensors["gpt_neox.embed_in.weight"];
  scratch_.write("neox/config.json", config.dump());
  write_weights(scratch_ / "neox", tensors);
  save(request(scratch_ / "neox"));
  EXPECT_EQ(io::Checkpoint(scratch_ / "out").tensors().count("lm_head.weight"), 1U);
  EXPECT_EQ(io::Checkpoint(scratch_ / "out").tensors().size(), tensors.size());

  config["tie_word_embeddings"] = false;
  tensors = values(read_hf_config("config.json", config));
  tensors["lm_head.weight"] = tensors["embed_out.weight"];
  tensors.erase("embed_out.weight");
  scratch_.write("neox/config.json", config.dump());
  write_weights(scratch_ / "neox", tensors);
  save(request(scratch_ / "neox"));
  EXPECT_EQ(io::Checkpoint(scratch_ / "out").tensors().count("lm_head.weight"), 1U);
  EXPECT_EQ(io::Checkpoint(scratch_ / "out").tensors().count("embed_out.weight"), 0U);
}

TEST_F(SaveTest, WhatCannotBeWrittenIsRefusedBeforeAnythingIsThere) {
  const auto refused = [&](NamedTensors tensors, const std::string& part) {
    SaveRequest wrong = request(scratch_ / "in");
    wrong.directory = scratch_ / "new/deep";
    wrong.tensors = std::move(tensors);
    PAPERLAB_EXPECT_THROW(save(wrong), ValueError, part);
    EXPECT_FALSE(scratch_.has("new"));
  };
  const at::Tensor one = at::ones({1});
  refused({{"a", one}, {"a", one}}, "tensor 'a' is there twice");
  refused({{"a", one.to(at::kLong)}}, "tensor 'a' must be float32, float64, bfloat16 or float16");
  refused({{"a", at::Tensor()}}, "tensor 'a' must be strided");
  refused({{"a", one.to_sparse()}}, "tensor 'a' must be strided");
  refused({{"\xFF", one}}, "must be UTF-8");
  SaveRequest twice = request(scratch_ / "in");
  twice.files = {scratch_ / "in/merges.txt", scratch_ / "in/../in/merges.txt"};
  PAPERLAB_EXPECT_THROW(save(twice), ValueError, "the file name 'merges.txt' comes twice");
  EXPECT_FALSE(scratch_.has("out"));
}

TEST_F(SaveTest, FilesAndDirectoriesThatAreNotThereAreNamed) {
  SaveRequest missing = request(scratch_ / "in");
  missing.files.push_back(scratch_ / "in/vocab.json");
  PAPERLAB_EXPECT_THROW(save(missing), IoError, "in/vocab.json: No such file");
  EXPECT_FALSE(scratch_.has("out"));
  SaveRequest onto_file = request(scratch_ / "in");
  scratch_.write("file", "kept");
  for (const char* path : {"file", "file/below"}) {
    onto_file.directory = scratch_ / path;
    PAPERLAB_EXPECT_THROW(save(onto_file), IoError, "Not a directory");
  }
  EXPECT_EQ(scratch_.read("file"), "kept");
  onto_file.directory = scratch_ / "out";
  fs::create_directories(scratch_ / "out/config.json");
  PAPERLAB_EXPECT_THROW(save(onto_file), IoError, "out/config.json: Is a directory");
  EXPECT_FALSE(scratch_.has("out/model.safetensors"));
}

class OtherFormat final : public WeightFiles {
 public:
  explicit OtherFormat(std::string path) : path_(std::move(path)) {}

  void write(const std::map<std::string, at::Tensor>& tensors) override {
    file_.emplace(path_, 1);
    num_tensors_ = tensors.size();
    if (fails) {
      throw IoError(path_ + ": no");
    }
    file_->write(0, "x", 1);
  }
  void finish() override { file_->finish(); }
  void discard() noexcept override { file_.reset(); }

  std::size_t num_tensors() const { return num_tensors_; }

  bool fails = false;

 private:
  std::string path_;
  std::optional<io::AtomicFile> file_;
  std::size_t num_tensors_ = 0;
};

TEST_F(SaveTest, WeightsMayBeInAnotherFormat) {
  SaveRequest other = request(scratch_ / "in");
  other.directory = scratch_ / "new/deep";
  OtherFormat files(scratch_ / "new/deep/weights");
  files.fails = true;
  PAPERLAB_EXPECT_THROW(save(other, files), IoError, "weights: no");
  EXPECT_FALSE(scratch_.has("new"));
  files.fails = false;
  save(other, files);
  EXPECT_EQ(files.num_tensors(), tensors_.size());
  std::vector<std::string> names;
  for (const auto& [name, bytes] : contents(scratch_ / "new/deep")) {
    names.push_back(name);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"config.json", "generation_config.json", "merges.txt",
                                             "tokenizer.json", "weights"}));
}

TEST_F(SaveTest, WithoutPermissionNothingChanges) {
  if (geteuid() == 0) {
    GTEST_SKIP() << "root may write everywhere";
  }
  save(request(scratch_ / "in"));
  const auto before = contents(scratch_ / "out");
  fs::permissions(scratch_ / "out", fs::perms::owner_read | fs::perms::owner_exec);
  PAPERLAB_EXPECT_THROW(save(request(scratch_ / "in")), IoError, "Permission denied");
  fs::permissions(scratch_ / "out", fs::perms::owner_all);
  EXPECT_EQ(contents(scratch_ / "out"), before);
}

// A limit on the size of files stands for a full disk: at each size something else fails first.
TEST_F(SaveTest, AFullDiskLeavesTheEarlierCheckpoint) {
  SaveRequest first = request(scratch_ / "in");
  first.max_shard_bytes = 600;
  save(first);
  const auto before = contents(scratch_ / "out");
  SaveRequest second = request(scratch_ / "in");
  for (auto& [name, tensor] : second.tensors) {
    tensor.add_(1.0);
  }
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t size : {3, 30, 60, 300, 1000, 3000, 5000}) {
    for (const std::uint64_t max_shard_bytes : {io::kMaxShardBytes, std::uint64_t{600}}) {
      second.max_shard_bytes = max_shard_bytes;
      const rlimit tiny{size, limit.rlim_max};
      ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tiny), 0);
      std::string message;
      try {
        save(second);
      } catch (const IoError& error) {
        message = error.what();
      }
      ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
      if (!message.empty()) {
        EXPECT_NE(message.find("File too large"), std::string::npos) << message;
        EXPECT_EQ(contents(scratch_ / "out"), before) << size;
      } else {
        EXPECT_GE(size, 1000U);
        EXPECT_EQ(max_shard_bytes, 600U);
        save(first);
      }
    }
  }
  std::signal(SIGXFSZ, old_handler);
}

}  // namespace
}  // namespace paperlab::nn
