#include "paperlab/nn/weights.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/io/safetensors_cases.h"
#include "tests/paperlab/nn/checkpoint_cases.h"

namespace paperlab::nn {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class WeightsTest : public testing::Test {
 protected:
  Weights load(const HfModel& model, MapOptions options = {}) const {
    return map_weights(io::Checkpoint(directory_), model, std::move(options));
  }

  Weights load(const Tensors& tensors, MapOptions options = {}) const {
    write_weights(directory_, tensors);
    return load(llama_, std::move(options));
  }

  void expect_refused(const Tensors& tensors, const std::string& part) const {
    PAPERLAB_EXPECT_THROW(load(tensors), ValueError, part);
    PAPERLAB_EXPECT_THROW(load(tensors), ValueError, directory_);
  }

  Scratch scratch_;
  std::string directory_ = scratch_ / "model";
  HfModel llama_ = read_hf_config("config.json", llama_config());
  HfModel neox_ = read_hf_config("config.json", gpt_neox_config());
};

TEST_F(WeightsTest, TensorsComeInTheOrderOfTheSpecsWithTheBytesOfTheFile) {
  for (const bool is_mapped : {true, false}) {
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      const Tensors tensors = values(llama_, type);
      MapOptions options;
      options.is_mapped = is_mapped;
      const Weights weights = load(tensors, options);
      expect_equal(weights.tensors, tensors);
      EXPECT_TRUE(weights.file_names.empty());
      const auto specs = parameter_specs(llama_.config, llama_.family);
      for (std::size_t i = 0; i < specs.size(); ++i) {
        EXPECT_EQ(weights.tensors[i].first, specs[i].name);
        EXPECT_EQ(weights.tensors[i].second.scalar_type(), type);
        EXPECT_TRUE(weights.tensors[i].second.is_contiguous());
      }
    }
  }
}

TEST_F(WeightsTest, MappedTensorsCanBeWrittenAndLeaveTheFileAlone) {
  const Tensors tensors = values(llama_);
  const Weights weights = load(tensors);
  const auto before = contents(directory_);
  for (const auto& [name, tensor] : weights.tensors) {
    tensor.fill_(-1.0);
  }
  EXPECT_EQ(contents(directory_), before);
  expect_equal(load(llama_).tensors, tensors);
}

TEST_F(WeightsTest, MappedTensorsLieInOneMappingOfTheFile) {
  const Weights weights = load(values(llama_));
  const io::Checkpoint checkpoint(directory_);
  const auto address = [&](const std::string& name) {
    for (const auto& [other, tensor] : weights.tensors) {
      if (other == name) {
        return static_cast<const char*>(tensor.const_data_ptr()) -
               checkpoint.at(name).entry->offset;
      }
    }
    return static_cast<const char*>(nullptr);
  };
  for (const auto& [name, location] : checkpoint.tensors()) {
    EXPECT_EQ(address(name), address("lm_head.weight"));
  }
}

TEST_F(WeightsTest, TensorsOutliveTheFile) {
  const Tensors tensors = values(llama_);
  const Weights weights = load(tensors);
  write_weights(directory_, values(llama_, at::kDouble));  // another file under the name
  expect_equal(weights.tensors, tensors);
  std::filesystem::remove_all(directory_);
  expect_equal(weights.tensors, tensors);
}

TEST_F(WeightsTest, TensorsOfTheirOwnMemoryOutliveAnInPlaceChange) {
  MapOptions options;
  options.is_mapped = false;
  const Tensors tensors = values(llama_);
  const Weights weights = load(tensors, options);
  std::filesystem::resize_file(directory_ + "/model.safetensors", 10);
  expect_equal(weights.tensors, tensors);
}

TEST_F(WeightsTest, ShardsAreRead) {
  const Tensors tensors = values(llama_);
  write_weights(directory_, tensors, 500);
  const io::Checkpoint checkpoint(directory_);
  EXPECT_GT(checkpoint.files().size(), 3U);
  expect_equal(map_weights(checkpoint, llama_).tensors, tensors);
}

TEST_F(WeightsTest, ElementsThatAreNotAlignedInTheFileAreCopied) {
  const ParameterSpec spec{"a", Role::kFinalNorm, -1, false, {3}, ""};
  const float numbers[] = {1.5F, -2.5F, 3.5F};
  const std::string data(reinterpret_cast<const char*>(numbers), sizeof(numbers));
  for (std::size_t pad = 0; pad < 8; ++pad) {
    const std::string header =
        '{' + io::entry("a", "F32", "[3]", "[0,12]") + '}' + std::string(pad, ' ');
    scratch_.write("model/model.safetensors", io::raw_file(header, data));
    const Weights weights = map_weights(io::Checkpoint(directory_), {spec});
    const at::Tensor& tensor = weights.tensors[0].second;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 4, 0U);
    EXPECT_EQ(tensor[0].item<float>(), 1.5F);
    EXPECT_EQ(tensor[2].item<float>(), 3.5F);
  }
}

TEST_F(WeightsTest, DtypesAreConvertedOnRequest) {
  const Tensors tensors = values(llama_);
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    MapOptions options;
    options.dtype = type;
    for (const auto& [name, tensor] : load(tensors, options).tensors) {
      EXPECT_TRUE(at::equal(tensor, tensors.at(name).to(type)));
    }
  }
  MapOptions options;
  options.dtype = at::kInt;
  PAPERLAB_EXPECT_THROW(load(tensors, options), DTypeError, "float16, got Int");
}

TEST_F(WeightsTest, TypesThatDifferBecomeTheConfigsOrTheWidest) {
  Tensors tensors = values(llama_, at::kBFloat16);
  tensors["model.norm.weight"] = tensors["model.norm.weight"].to(at::kFloat);
  const auto type_for = [&](const std::optional<std::string>& dtype) {
    llama_.dtype = dtype;
    const Weights weights = load(tensors);
    for (const auto& [name, tensor] : weights.tensors) {
      EXPECT_EQ(tensor.scalar_type(), weights.tensors[0].second.scalar_type());
    }
    return weights.tensors[0].second.scalar_type();
  };
  EXPECT_EQ(type_for(std::nullopt), at::kFloat);
  EXPECT_EQ(type_for("bfloat16"), at::kBFloat16);
  EXPECT_EQ(type_for("float64"), at::kDouble);
  EXPECT_EQ(type_for("auto"), at::kFloat);
  tensors["model.norm.weight"] = tensors["model.norm.weight"].to(at::kHalf);
  EXPECT_EQ(type_for(std::nullopt), at::kFloat);  // neither half is wider
  tensors = values(llama_);
  EXPECT_EQ(type_for("bfloat16"), at::kFloat);  // no difference: as stored
}

TEST_F(WeightsTest, OtherTypesAreRefusedByName) {
  Tensors tensors = values(llama_);
  tensors["model.norm.weight"] = at::ones({8}, at::kInt);
  expect_refused(tensors,
                 "model.safetensors: tensor 'model.norm.weight' must be float32, float64, "
                 "bfloat16 or float16, got I32");
}

TEST_F(WeightsTest, MissingAndUnknownTensorsAreListed) {
  Tensors tensors = values(llama_);
  tensors.erase("model.norm.weight");
  expect_refused(tensors, "model: lacks the tensors 'model.norm.weight'");
  tensors["transformer.wte.weight"] = at::ones({2});
  expect_refused(tensors, "'model.norm.weight'; has unknown tensors 'transformer.wte.weight'");
  for (const auto& [name, tensor] : values(llama_)) {
    tensors.erase(name);
  }
  expect_refused(tensors,
                 "'model.layers.0.mlp.gate_proj.weight', "
                 "'model.layers.0.mlp.up_proj.weight', "
                 "'model.layers.0.mlp.down_proj.weight' and 13 more; has unknown");
  tensors = values(llama_);
  tensors["model.layers.0.self_attn.q_proj.bias"] = at::ones({8});
  expect_refused(tensors, "has unknown tensors 'model.layers.0.self_attn.q_proj.bias'");
  tensors = values(llama_);
  tensors["model.layers.2.input_layernorm.weight"] = at::ones({8});
  expect_refused(tensors, "has unknown tensors 'model.layers.2.input_layernorm.weight'");
}

TEST_F(WeightsTest, ShapesThatDoNotFitAreNamed) {
  Tensors tensors = values(llama_);
  tensors["model.layers.1.mlp.up_proj.weight"] = at::ones({8, 6});
  expect_refused(tensors, "tensor 'model.layers.1.mlp.up_proj.weight' must be [6, 8], got [8, 6]");
  tensors["model.layers.1.mlp.up_proj.weight"] = at::ones({48});
  expect_refused(tensors, "must be [6, 8], got [48]");
}

TEST_F(WeightsTest, AnotherVocabularyIsCalledSo) {
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    Tensors tensors = values(llama_);
    tensors[name] = at::ones({12, 8});
    expect_refused(tensors, std::string("tensor '") + name +
                                "' must be [10, 8], got [12, 8]: its vocabulary has 12 tokens, "
                                "vocab_size in config.json is 10");
  }
}

TEST_F(WeightsTest, StaleBuffersAreSkipped) {
  Tensors tensors = values(llama_);
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::full({2}, kNan);
  expect_equal(load(tensors).tensors, values(llama_));
  tensors = values(neox_);
  tensors["gpt_neox.layers.0.attention.bias"] = at::ones({1, 1, 4, 4}, at::kByte);
  tensors["gpt_neox.layers.0.attention.masked_bias"] = at::ones({}, at::kInt);
  tensors["gpt_neox.layers.1.attention.rotary_emb.inv_freq"] = at::ones({2});
  write_weights(directory_, tensors);
  expect_equal(load(neox_).tensors, values(neox_));
}

TEST_F(WeightsTest, ATiedHeadMayBeStoredIfItIsTheEmbedding) {
  llama_.config.has_tied_head = true;
  Tensors tensors = values(llama_);
  EXPECT_TRUE(load(tensors).file_names.empty());
  const Tensors without = tensors;
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  const Weights weights = load(tensors);
  expect_equal(weights.tensors, without);
  EXPECT_EQ(
      weights.file_names,
      (FileNames{{"model.embed_tokens.weight", {"model.embed_tokens.weight", "lm_head.weight"}}}));
  tensors["lm_head.weight"] = tensors["lm_head.weight"].add(1);
  expect_refused(tensors,
                 "tensor 'lm_head.weight' must be equal to 'model.embed_tokens.weight', "
                 "to which tie_word_embeddings ties it");
  tensors["lm_head.weight"] = without.at("model.embed_tokens.weight").to(at::kDouble);
  expect_refused(tensors, "must be equal to");
  tensors["lm_head.weight"] = without.at("model.embed_tokens.weight").view({8, 10});
  expect_refused(tensors, "must be equal to");
}

TEST_F(WeightsTest, TheHeadOfGptNeoXHasTwoNames) {
  Tensors tensors = values(neox_);
  write_weights(directory_, tensors);
  EXPECT_TRUE(load(neox_).file_names.empty());
  expect_equal(load(neox_).tensors, tensors);
  tensors["lm_head.weight"] = tensors["embed_out.weight"];
  tensors.erase("embed_out.weight");
  write_weights(directory_, tensors);
  const Weights weights = load(neox_);
  expect_equal(weights.tensors, values(neox_));
  EXPECT_EQ(weights.file_names, (FileNames{{"embed_out.weight", {"lm_head.weight"}}}));
  tensors["embed_out.weight"] = tensors["lm_head.weight"];
  write_weights(directory_, tensors);
  PAPERLAB_EXPECT_THROW(load(neox_), ValueError, "has unknown tensors 'lm_head.weight'");
  neox_.config.has_tied_head = true;
  tensors = values(neox_);
  tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"];
  write_weights(directory_, tensors);
  EXPECT_EQ(load(neox_).file_names.at("gpt_neox.embed_in.weight").back(), "embed_out.weight");
}

TEST_F(WeightsTest, NanIsNamedWithItsPlace) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const bool is_mapped : {true, false}) {
      MapOptions options;
      options.is_mapped = is_mapped;
      options.dtype = at::kFloat;
      Tensors tensors = values(llama_, type);
      tensors["model.layers.1.mlp.down_proj.weight"][5][2] = kNan;
      PAPERLAB_EXPECT_THROW(load(tensors, options), ValueError,
                            "model.safetensors: tensor 'model.layers.1.mlp.down_proj.weight' holds "
                            "NaN at index [5, 2]");
      options.checks_nan = false;
      EXPECT_EQ(load(tensors, options).tensors.size(), tensors.size());
    }
  }
}

TEST_F(WeightsTest, NanInAShardIsNamedWithTheShard) {
  Tensors tensors = values(llama_);
  tensors["model.norm.weight"][7] = kNan;
  write_weights(directory_, tensors, 500);
  const io::Checkpoint checkpoint(directory_);
  PAPERLAB_EXPECT_THROW(map_weights(checkpoint, llama_), ValueError,
                        checkpoint.at("model.norm.weight").file->path() +
                            ": tensor 'model.norm.weight' holds NaN at index [7]");
}

TEST_F(WeightsTest, WithoutSpecsThereAreNoTensors) {
  write_weights(directory_, {});
  EXPECT_TRUE(
      map_weights(io::Checkpoint(directory_), std::vector<ParameterSpec>()).tensors.empty());
}

// Of all 16-bit numbers: those that are NaN one by one where they begin and end, the others at
// once.
TEST(NanScanTest, EveryNanIsFoundAndNoOtherNumber) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const at::Tensor numbers = at::arange(65536, at::kInt).to(at::kShort).view(type);
    const at::Tensor is_nan = numbers.isnan();
    const at::Tensor places = is_nan.nonzero().view({-1});
    const std::int64_t half = places.size(0) / 2;  // of the negative ones the first
    ASSERT_GT(half, 100);
    for (const std::int64_t i :
         {std::int64_t{0}, half / 2, half - 1, half, half + 1, 2 * half - 1}) {
      const at::Tensor one = numbers[places[i].item<std::int64_t>()];
      PAPERLAB_EXPECT_THROW(check_no_nan("f", {{"x", one}}), ValueError, "holds NaN at index []");
    }
    const at::Tensor others = numbers.index({is_nan.logical_not()});
    EXPECT_EQ(others.numel(), 65536 - 2 * half);
    EXPECT_NO_THROW(check_no_nan("f", {{"x", others}}));
  }
}

TEST(NanScanTest, TheFirstByOrderIsNamedWhereverItIs) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    at::Tensor a = at::zeros({3}, type);
    at::Tensor b = at::zeros({700, 1500}, type);  // several pieces
    for (const std::int64_t at : {0, 1023, 1024, 524'287, 524'288, 1'049'999}) {
      b.zero_();
      b.view({-1})[at] = -kNan;
      b.view({-1})[1'049'999] = kNan;
      PAPERLAB_EXPECT_THROW(check_no_nan("file", {{"a", a}, {"b", b}}), ValueError,
                            "file: tensor 'b' holds NaN at index [" + std::to_string(at / 1500) +
                                ", " + std::to_string(at % 1500) + "]");
    }
    a[2] = kNan;
    PAPERLAB_EXPECT_THROW(check_no_nan("file", {{"a", a}, {"b", b}}), ValueError, "'a' holds NaN");
  }
}

TEST(NanScanTest, InfinitiesIntegersStridesAndNoElementsPass) {
  const at::Tensor x = at::full({2, 3000}, kInfinity);
  x[1].fill_(-kInfinity);
  check_no_nan("f", {{"x", x},
                     {"max", at::full({5}, std::numeric_limits<float>::max())},
                     {"int", at::full({5}, -1, at::kInt)},
                     {"none", at::zeros({0, 3})},
                     {"scalar", at::zeros({})}});
  at::Tensor columns = at::zeros({6, 4});
  columns[3][1] = kNan;
  PAPERLAB_EXPECT_THROW(check_no_nan("f", {{"t", columns.t()}}), ValueError, "index [1, 3]");
  check_no_nan("f", {{"even", columns.slice(1, 0, 4, 2)}});
}

TEST(WithDtypeTest, TheKeysThatAreThereAreSet) {
  EXPECT_EQ(with_dtype({{"dtype", "float32"}}, at::kBFloat16), (Json{{"dtype", "bfloat16"}}));
  EXPECT_EQ(with_dtype({{"torch_dtype", "x"}}, at::kDouble), (Json{{"torch_dtype", "float64"}}));
  EXPECT_EQ(with_dtype({{"a", 1}}, at::kHalf), (Json{{"a", 1}}));
  PAPERLAB_EXPECT_THROW(with_dtype({}, at::kLong), DTypeError, "dtype must be float32");
}

}  // namespace
}  // namespace paperlab::nn
