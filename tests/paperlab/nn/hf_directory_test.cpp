// A directory with config.json and what lies beside it.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/nn/hf_config_cases.h"

namespace paperlab::nn {
namespace {

using experiments::Scratch;

class HfDirectoryTest : public testing::Test {
 protected:
  std::string path() const { return scratch_ / "model"; }
  Scratch scratch_;
};

TEST_F(HfDirectoryTest, ItsFilesAreRead) {
  scratch_.write("model/config.json", llama().dump());
  HfDirectory directory = read_hf_directory(path());
  EXPECT_EQ(directory.config, llama());
  EXPECT_FALSE(directory.generation_config.has_value());
  EXPECT_TRUE(directory.tokenizer_files.empty());
  EXPECT_EQ(directory.model.config.eos_token_ids, std::vector<std::int64_t>{2});
  scratch_.write("model/generation_config.json", R"({"eos_token_id": [4, 5]})");
  scratch_.write("model/tokenizer.json", "{}");
  scratch_.write("model/merges.txt", "a b");
  scratch_.write("model/notes.txt", "not the tokenizer's");
  directory = read_hf_directory(path());
  EXPECT_EQ(directory.generation_config, Json::parse(R"({"eos_token_id": [4, 5]})"));
  EXPECT_EQ(directory.model.config.eos_token_ids, (std::vector<std::int64_t>{4, 5}));
  EXPECT_EQ(directory.tokenizer_files,
            (std::vector<std::string>{path() + "/tokenizer.json", path() + "/merges.txt"}));
}

TEST_F(HfDirectoryTest, WhatIsNoModelsDirectoryIsNamed) {
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), IoError, path() + ": No such file");
  scratch_.write("model/x", "");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), IoError,
                        "model/config.json: No such file or directory; a model's directory has");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path() + "/x"), IoError, "x/config.json: ");
  scratch_.write("model/config.json", "{\"model_type\": ");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), ValueError, "model/config.json: line 1: ");
  scratch_.write("model/config.json", "\xFF\xFE");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), ValueError, "model/config.json: line 1: ");
  scratch_.write("model/config.json", R"({"model_type": "llama", "rms_norm_eps": NaN})");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), ValueError, "model/config.json: line 1: ");
  scratch_.write("model/config.json", llama().dump());
  scratch_.write("model/generation_config.json", "[");
  PAPERLAB_EXPECT_THROW(read_hf_directory(path()), ValueError, "generation_config.json: line 1");
}

}  // namespace
}  // namespace paperlab::nn
