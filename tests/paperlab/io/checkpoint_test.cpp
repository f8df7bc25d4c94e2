#include "paperlab/io/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "tests/paperlab/io/safetensors_cases.h"

namespace paperlab::io {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() : directory_(scratch_ / "model") {
    std::filesystem::create_directories(directory_);
  }

  /// Writes each tensor with its name as the bytes.
  void write(const std::vector<std::string>& names, std::uint64_t max_shard_bytes) const {
    std::vector<TensorSpec> specs;
    specs.reserve(names.size());
    for (const std::string& name : names) {
      specs.push_back({name, ElementType::kU8, {static_cast<std::int64_t>(name.size())}});
    }
    CheckpointWriter writer(directory_, specs, Metadata{{"format", "pt"}}, max_shard_bytes);
    for (const TensorEntry& tensor : writer.tensors()) {
      writer.append(tensor.name, tensor.name.data(), tensor.name.size());
    }
    writer.finish();
  }

  std::string bytes(const Checkpoint& checkpoint, const std::string& name) const {
    const Checkpoint::Location& at = checkpoint.at(name);
    std::string text(at.entry->num_bytes, '\0');
    at.file->file().read({at.entry->offset, text.size(), text.data()});
    return text;
  }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& item : std::filesystem::directory_iterator(directory_)) {
      names.push_back(item.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  void expect_index_refused(const std::string& text, const std::string& part) const {
    scratch_.write(std::string("model/") + kIndex, text);
    PAPERLAB_EXPECT_THROW(Checkpoint{directory_}, ValueError, part);
    PAPERLAB_EXPECT_THROW(Checkpoint{directory_}, ValueError, directory_);
  }

  Scratch scratch_;
  std::string directory_;
};

TEST_F(CheckpointTest, WhatFitsIsOneFile) {
  write({"b", "a"}, 2);
  EXPECT_EQ(files(), std::vector<std::string>{"model.safetensors"});
  const Checkpoint read(directory_);
  EXPECT_EQ(read.tensors().size(), 2U);
  EXPECT_EQ(bytes(read, "a") + bytes(read, "b"), "ab");
  EXPECT_EQ(read.metadata(), (Metadata{{"format", "pt"}}));
  PAPERLAB_EXPECT_THROW(read.at("c"), ValueError, "has no tensor 'c'");
}

TEST_F(CheckpointTest, MoreIsShardsWithTheirIndex) {
  write({"two-bytes", "one", "three", "4"}, 9);
  EXPECT_EQ(files(), (std::vector<std::string>{"model-00001-of-00002.safetensors",
                                               "model-00002-of-00002.safetensors", kIndex}));
  const Json index = read_json(directory_ + '/' + kIndex);
  EXPECT_EQ(index["metadata"]["total_size"], 18);
  EXPECT_EQ(index["weight_map"]["4"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["two-bytes"], "model-00002-of-00002.safetensors");
  const Checkpoint read(directory_);
  EXPECT_EQ(read.files().size(), 2U);
  for (const char* name : {"two-bytes", "one", "three", "4"}) {
    EXPECT_EQ(bytes(read, name), name);
  }
}

TEST_F(CheckpointTest, ATensorAboveTheLimitHasAShardOfItsOwn) {
  write({"a", "much longer", "z"}, 1);
  EXPECT_EQ(files().size(), 4U);
  EXPECT_EQ(bytes(Checkpoint(directory_), "much longer"), "much longer");
}

TEST_F(CheckpointTest, AnEarlierCheckpointsFilesAreRemovedAndNoOthers) {
  scratch_.write("model/config.json", "{}");
  scratch_.write("model/model-old.safetensors", "kept: no shard's name");
  scratch_.write("model/adapter_model.safetensors", "kept");
  write({"a", "b", "c"}, 1);
  write({"a", "b"}, 1);
  const std::vector<std::string> others = {"adapter_model.safetensors", "config.json"};
  EXPECT_EQ(files(), (std::vector<std::string>{
                         others[0], others[1], "model-00001-of-00002.safetensors",
                         "model-00002-of-00002.safetensors", "model-old.safetensors", kIndex}));
  write({"a"}, 1);
  EXPECT_EQ(files(), (std::vector<std::string>{others[0], others[1], "model-old.safetensors",
                                               "model.safetensors"}));
}

TEST_F(CheckpointTest, WithoutFinishNothingChanges) {
  write({"a", "b"}, 1);
  const auto before = files();
  {
    CheckpointWriter writer(
        directory_, {{"c", ElementType::kU8, {1}}, {"d", ElementType::kU8, {1}}}, std::nullopt, 1);
    writer.append("c", "c", 1);
    PAPERLAB_EXPECT_THROW(writer.append("e", "e", 1), ValueError, "'e' was not declared");
    PAPERLAB_EXPECT_THROW(writer.finish(), ValueError, "'d' has 1 bytes, only 0");
  }
  EXPECT_EQ(files(), before);
  EXPECT_EQ(bytes(Checkpoint(directory_), "a"), "a");
}

TEST_F(CheckpointTest, WriterRefusesNamesThatComeTwiceAndMissingFolders) {
  const TensorSpec a{"a", ElementType::kU8, {1}};
  PAPERLAB_EXPECT_THROW(CheckpointWriter(directory_, {a, a}), ValueError, "'a' is there twice");
  PAPERLAB_EXPECT_THROW(CheckpointWriter(directory_, {a, a}, std::nullopt, 1), ValueError, "twice");
  PAPERLAB_EXPECT_THROW(CheckpointWriter(scratch_ / "none", {a}), IoError,
                        "none/model.safetensors: No");
  EXPECT_TRUE(files().empty());
}

TEST_F(CheckpointTest, MissingFilesAreNamed) {
  PAPERLAB_EXPECT_THROW(Checkpoint{directory_}, IoError, "model/model.safetensors: No such file");
  write({"a", "b"}, 1);
  std::filesystem::remove(directory_ + "/model-00002-of-00002.safetensors");
  PAPERLAB_EXPECT_THROW(Checkpoint{directory_}, IoError,
                        "model-00002-of-00002.safetensors: No such");
}

TEST_F(CheckpointTest, ATensorThatItsShardLacksIsNamed) {
  write({"a", "b"}, 1);
  const std::string shard = "model-00001-of-00002.safetensors";
  expect_index_refused(R"({"weight_map":{"b":")" + shard + "\"}}", shard + ": has no tensor 'b'");
}

TEST_F(CheckpointTest, ATensorThatTheIndexHasElsewhereOrNotIsNamed) {
  write({"a", "b", "c"}, 2);  // a and b in the first shard
  const std::string first = "model-00001-of-00002.safetensors";
  const std::string second = "model-00002-of-00002.safetensors";
  expect_index_refused(R"({"weight_map":{"a":")" + first + R"(","c":")" + second + "\"}}",
                       first + ": tensor 'b' must be as in ");
  expect_index_refused(R"({"weight_map":{"a":")" + first + R"(","c":")" + second + "\"}}",
                       "which does not list it");
  std::filesystem::copy(directory_ + '/' + first, directory_ + "/more.safetensors");
  const std::string both = R"({"weight_map":{"a":"more.safetensors","b":")" + first + "\"}}";
  expect_index_refused(both, "more.safetensors: tensor 'b' must be as in ");
  expect_index_refused(both, "which has it in " + directory_ + '/' + first);
}

TEST_F(CheckpointTest, IndexFilesThatLeadElsewhereOrAreMalformedAreRefused) {
  for (const char* name : {"../x", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000"}) {
    expect_index_refused(R"({"weight_map":{"t":")" + std::string(name) + "\"}}",
                         "the file of tensor 't' must be a name without a folder");
  }
  expect_index_refused(R"({"weight_map":{"t":3}})", "a name without a folder, got 'number'");
  expect_index_refused(R"({"weight_map":{}})", "'weight_map' is empty");
  expect_index_refused(R"({"weight_map":[]})", "must be an object with an object 'weight_map'");
  expect_index_refused("[]", "must be an object");
  expect_index_refused("", "not JSON at byte");
  expect_index_refused(R"({"weight_map":{"t":"a","t":"b"}})", "'t' is there twice");
  expect_index_refused(R"({"weight_map":{"t":"a"},"weight_map":{"t":"a"}})",
                       "'weight_map' is there twice");
  expect_index_refused("{\"a\":" + std::string(100'000, '['), "nested more than 64 deep");
  expect_index_refused("{\"a\":1e999}", "a number is out of range");
  expect_index_refused(std::string("{\0}", 3), "not JSON at byte 2");
}

}  // namespace
}  // namespace paperlab::io
