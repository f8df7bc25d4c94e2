// The descriptions of encoders: defaults and tables give the parameters of transformers' classes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/nn/encoder_hf_config.h"
#include "paperlab/nn/encoder_parameters.h"

namespace paperlab::nn {
namespace {

EncoderConfig config_of(const char* type, const char* architecture, const Json& changes = {}) {
  Json config = {{"model_type", type}, {"architectures", {architecture}}};
  config.update(changes.is_null() ? Json::object() : changes);
  return read_hf_encoder_config("config.json", config).config;
}

// What transformers 5.23 makes of its configuration classes' defaults, counted on its meta device.
struct Default {
  const char* type;
  const char* architecture;
  std::int64_t num_values;
  std::size_t num_tensors;
};

class Defaults : public testing::TestWithParam<Default> {};

TEST_P(Defaults, HaveTheParametersOfTransformers) {
  const Default& expected = GetParam();
  const auto specs = encoder_parameter_specs(config_of(expected.type, expected.architecture));
  std::int64_t num_values = 0;
  std::set<std::string> names;
  for (const ParameterSpec& spec : specs) {
    std::int64_t size = 1;
    for (const std::int64_t extent : spec.shape) {
      size *= extent;
    }
    num_values += size;
    names.insert(spec.name);
  }
  EXPECT_EQ(num_values, expected.num_values);
  EXPECT_EQ(specs.size(), expected.num_tensors);
  EXPECT_EQ(names.size(), specs.size());
}

INSTANTIATE_TEST_SUITE_P(
    Encoders, Defaults,
    testing::Values(Default{"bert", "BertModel", 109482240, 199},
                    Default{"bert", "BertForMaskedLM", 109514298, 202},
                    Default{"roberta", "RobertaForMaskedLM", 124696665, 202},
                    Default{"roberta", "RobertaForSequenceClassification", 124646402, 201},
                    Default{"distilbert", "DistilBertModel", 66362880, 100},
                    Default{"distilbert", "DistilBertForSequenceClassification", 66955010, 104},
                    Default{"deberta-v2", "DebertaV2ForMaskedLM", 879999588, 393},
                    Default{"deberta-v2", "DebertaV2ForTokenClassification", 877510658, 390},
                    Default{"vit", "ViTModel", 86389248, 200},
                    Default{"vit", "ViTForImageClassification", 85800194, 200}),
    [](const auto& info) { return std::string(info.param.architecture); });

TEST(EncoderConfigs, PositionsOfRobertaBeginAfterThePadding) {
  const EncoderConfig config = config_of("roberta", "RobertaModel", {{"pad_token_id", 5}});
  EXPECT_EQ(config.num_positions, 512);
  EXPECT_EQ(config.block.max_positions, 506);
  EXPECT_TRUE(config.counts_from_padding);
}

TEST(EncoderConfigs, DistancesOfDeberta) {
  const Json settings = {{"relative_attention", true},  {"pos_att_type", "c2p|P2C"},
                         {"position_buckets", 256},     {"norm_rel_ebd", "layer_norm"},
                         {"share_att_key", true},       {"position_biased_input", false},
                         {"max_relative_positions", -1}};
  const EncoderConfig config = config_of("deberta-v2", "DebertaV2Model", settings);
  EXPECT_TRUE(config.relative.has_content_to_position);
  EXPECT_TRUE(config.relative.has_position_to_content);
  EXPECT_EQ(config.relative.span, 256);
  EXPECT_EQ(config.relative.max_distance, 512);
  EXPECT_EQ(config.attention_terms, 3);
  EXPECT_EQ(config.num_positions, 0);
}

TEST(EncoderConfigs, HeadsOfVitHaveLanesOfTheirOwn) {
  const Json settings = {{"hidden_size", 25}, {"num_attention_heads", 4}};
  EXPECT_EQ(config_of("vit", "ViTModel", settings).block.head_dim, 6);  // as many as fit
  Json given = settings;
  given["head_dim"] = 10;
  const EncoderConfig config = config_of("vit", "ViTModel", given);
  EXPECT_EQ(config.block.head_dim, 10);
  for (const ParameterSpec& spec : encoder_parameter_specs(config)) {
    if (spec.role == Role::kOut && !spec.is_bias) {
      EXPECT_EQ(spec.shape, (std::vector<std::int64_t>{25, 40}));
    }
  }
  EXPECT_THROW(config_of("bert", "BertModel", settings), ValueError);
  // Narrow heads do not hide how large the other tensors are.
  const Json huge = {{"hidden_size", 0x7fffffff},
                     {"num_attention_heads", 1},
                     {"head_dim", 1},
                     {"pooler_output_size", 0x7fffffff},
                     {"intermediate_size", 1}};
  EXPECT_THROW(config_of("vit", "ViTModel", huge), ValueError);
  EXPECT_THROW(config_of("deberta-v2", "DebertaV2Model", {{"conv_kernel_size", 0x7fffffff}}),
               ValueError);
}

TEST(EncoderConfigs, WithoutArchitecturesItIsTheModelItself) {
  for (const Json& absent : {Json(), Json::array()}) {
    const HfEncoderModel model = read_hf_encoder_config(
        "config.json", {{"model_type", "deberta-v2"}, {"architectures", absent}});
    EXPECT_EQ(model.config.output, EncoderOutput::kStates);
    EXPECT_EQ(model.architecture, "DebertaV2Model");
  }
}

TEST(EncoderConfigs, MeanPoolingHasNoClassToken) {
  EncoderConfig config = config_of("vit", "ViTForImageClassification");
  const auto has_class_token = [&] {
    const auto specs = encoder_parameter_specs(config);
    return std::any_of(specs.begin(), specs.end(),
                       [](const auto& spec) { return spec.role == Role::kClassToken; });
  };
  EXPECT_TRUE(has_class_token());
  config.has_mean_pooling = true;
  EXPECT_FALSE(has_class_token());
}

TEST(EncoderConfigs, OtherNamesOfVitsLayersGoBothWays) {
  const auto names = other_linear_names(config_of("vit", "ViTModel"));
  EXPECT_EQ(names.size(), 2U * 12U * 6U);
  EXPECT_EQ(names.at("encoder.layer.3.attention.output.dense"), "layers.3.attention.o_proj");
  for (const auto& [name, other] : names) {
    EXPECT_EQ(names.at(other), name);
  }
  EXPECT_TRUE(other_linear_names(config_of("bert", "BertModel")).empty());
}

TEST(EncoderConfigs, CopiesOfATiedHead) {
  using Copies = std::map<std::string, std::string>;
  EXPECT_EQ(encoder_copies(config_of("bert", "BertForMaskedLM")),
            (Copies{{"cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"},
                    {"cls.predictions.decoder.bias", "cls.predictions.bias"}}));
  EXPECT_EQ(encoder_copies(config_of("distilbert", "DistilBertForMaskedLM")),
            (Copies{{"vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"}}));
  EXPECT_EQ(vocabulary_layer_name(config_of("roberta", "RobertaForMaskedLM")), "lm_head.decoder");
  EXPECT_EQ(
      vocabulary_layer_name(config_of("deberta-v2", "DebertaV2ForMaskedLM", {{"legacy", false}})),
      "lm_predictions.lm_head");
  EXPECT_TRUE(encoder_copies(config_of("bert", "BertForTokenClassification")).empty());
}

TEST(EncoderConfigs, OtherClassesAreRefusedWithThoseThatAreKnown) {
  try {
    config_of("bert", "BertForQuestionAnswering");
    FAIL() << "no error";
  } catch (const ValueError& error) {
    EXPECT_STREQ(error.what(),
                 "config.json: setting 'architectures' must be a list that begins with one of "
                 "BertModel, BertForMaskedLM, BertForSequenceClassification, "
                 "BertForTokenClassification, got [\"BertForQuestionAnswering\"]");
  }
}

}  // namespace
}  // namespace paperlab::nn
