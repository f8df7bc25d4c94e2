// The rotary positions of config.json.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/nn/hf_config_cases.h"

namespace paperlab::nn {
namespace {

TEST(HfRopeTest, RopeOfBothVersionsIsRead) {
  const auto rope = [](const char* patch) {
    return read(with(with(llama(), R"({"rope_parameters": null})"), patch)).rope;
  };
  EXPECT_EQ(rope("{}").base, 10000.0);
  EXPECT_EQ(rope(R"({"rope_theta": 7})").base, 7.0);
  EXPECT_EQ(rope(R"({"rope_theta": 7, "rope_parameters": {"rope_type": "default"}})").base, 7.0);
  EXPECT_EQ(rope(R"({"rope_theta": 7, "rope_parameters": {"rope_theta": 8.5}})").base, 8.5);
  for (const char* form :
       {R"({"rope_theta": 7, "rope_scaling": {"type": "linear", "factor": 2}})",
        R"({"rope_theta": 7, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})",
        R"({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2,
                             "rope_theta": 7}})",
        R"({"rope_parameters": {"rope_type": "linear", "type": "linear", "factor": 2,
                                "rope_theta": 7.0}})"}) {
    EXPECT_EQ(rope(form).base, 7.0);
    EXPECT_EQ(rope(form).scaling, RopeScaling::kLinear);
    EXPECT_EQ(rope(form).factor, 2.0);
  }
  EXPECT_EQ(rope(R"({"rope_scaling": {"rope_type": "linear", "type": "dynamic",
                                      "factor": 2}})")
                .scaling,
            RopeScaling::kLinear);
  EXPECT_EQ(rope(R"({"rope_scaling": {}, "rope_parameters": {}})").scaling, RopeScaling::kNone);
}

TEST(HfRopeTest, EachRopeScalingIsRead) {
  const auto config = [](const char* rope) {
    return read(with(llama(), (R"({"rope_parameters": )" + std::string(rope) + "}").c_str()));
  };
  const DecoderConfig linear = config(R"({"rope_type": "linear", "factor": 2.5})");
  EXPECT_EQ(linear.max_positions, 160);
  EXPECT_EQ(linear.rope.max_positions, 64);
  const DecoderConfig dynamic = config(R"({"rope_type": "dynamic", "factor": 4})");
  EXPECT_EQ(dynamic.rope.scaling, RopeScaling::kDynamic);
  EXPECT_EQ(dynamic.max_positions, 256);
  const DecoderConfig llama3 = config(R"({"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.5, "high_freq_factor": 3, "original_max_position_embeddings": 16})");
  EXPECT_EQ(llama3.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(llama3.rope.low_freq_factor, 1.5);
  EXPECT_EQ(llama3.rope.high_freq_factor, 3.0);
  EXPECT_EQ(llama3.rope.original_max_positions, 16);
  EXPECT_EQ(llama3.max_positions, 128);
  const DecoderConfig yarn = config(R"({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16,
      "beta_slow": 2, "attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 0.8,
      "truncate": false, "original_max_position_embeddings": 32})");
  EXPECT_EQ(yarn.rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.rope.beta_fast, 16.0);
  EXPECT_EQ(yarn.rope.beta_slow, 2.0);
  EXPECT_EQ(yarn.rope.attention_factor, 1.5);
  EXPECT_EQ(yarn.rope.mscale, 0.7);
  EXPECT_EQ(yarn.rope.mscale_all_dim, 0.8);
  EXPECT_FALSE(yarn.rope.truncate);
  EXPECT_EQ(yarn.max_positions, 128);
  const DecoderConfig plain = config(R"({"rope_type": "yarn", "factor": null, "beta_fast": null,
      "mscale": 0, "original_max_position_embeddings": 16})");
  EXPECT_EQ(plain.rope.factor, 4.0);
  EXPECT_EQ(plain.rope.beta_fast, 32.0);
  EXPECT_FALSE(plain.rope.mscale || plain.rope.attention_factor);
  EXPECT_TRUE(plain.rope.truncate);
  EXPECT_EQ(config(R"({"rope_type": "yarn", "factor": 2})").rope.original_max_positions, 64);
  // A parameter of another scaling changes nothing.
  EXPECT_EQ(config(R"({"rope_type": "default", "factor": 3})").rope.factor, 1.0);
}

TEST(HfRopeTest, RopeThatCannotBeIsRefused) {
  const auto refused = [](const char* rope, const std::string& part) {
    expect_refused(with(with(llama(), R"({"rope_parameters": null})"),
                        (R"({"rope_parameters": )" + std::string(rope) + "}").c_str()),
                   part);
  };
  refused(R"({"rope_type": "longrope"})",
          "setting 'rope_parameters.rope_type' must be one of default, linear, dynamic, llama3, "
          "yarn, got \"longrope\"");
  refused(R"({"type": "su"})", "'rope_parameters.type' must be one of");
  refused(R"({"rope_type": 3})", "'rope_parameters.rope_type' must be a string");
  refused(R"({"rope_type": ""})", "must be one of");
  refused(R"({"mrope_section": [1, 2]})", "'rope_parameters.mrope_section' ([1,2]) is not known");
  refused(R"({"full_attention": {"rope_type": "default"}})", "full_attention'");
  for (const char* theta : {"0", "-1", "\"7\"", "true"}) {
    refused((R"({"rope_theta": )" + std::string(theta) + "}").c_str(),
            "'rope_parameters.rope_theta' must be a finite number > 0");
  }
  for (const char* type : {"linear", "dynamic", "llama3"}) {
    refused((R"({"rope_type": ")" + std::string(type) + "\"}").c_str(),
            "'rope_parameters.factor' must be a number > 0, got nothing");
  }
  refused(R"({"rope_type": "linear", "factor": 0})", "'rope_parameters.factor' must be a finite");
  refused(R"({"rope_type": "linear", "factor": 1e300})", "after scaling by the rope's factor");
  refused(R"({"rope_type": "llama3", "factor": 2, "high_freq_factor": 4})",
          "'rope_parameters.low_freq_factor' must be a number > 0, got nothing");
  refused(R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4})",
          "'rope_parameters.high_freq_factor' must be above low_freq_factor");
  refused(R"({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0})",
          "'rope_parameters.original_max_position_embeddings' must be an integer");
  refused(R"({"rope_type": "yarn", "factor": 2, "truncate": 1})", "must be true or false");
  refused(R"({"rope_type": "yarn", "factor": 2, "beta_fast": -1})", "'rope_parameters.beta_fast'");
  refused(R"({"rope_type": "yarn", "factor": 2, "rope_theta": 1})", "must be above 1 with yarn");
  refused(R"({"partial_rotary_factor": 0.5})", "must be 1 in a model of this type");
  refused("[1]", "'rope_parameters' must be an object or null");
  expect_refused(with(llama(), R"({"partial_rotary_factor": 0.5})"), "partial_rotary_factor'");
  expect_refused(with(llama(), R"({"rope_scaling": "linear"})"), "must be an object or null");
  expect_refused(with(llama(), R"({"rope_scaling": {"type": "linear", "factor": 2}})"),
                 "'rope_scaling' must be absent or equal to rope_parameters");
  expect_refused(with(llama(), R"({"head_dim": 2, "rope_parameters": {"rope_type": "dynamic",
                                   "factor": 2}})"),
                 "another one where 2 lanes are rotated");
}

TEST(HfRopeTest, GptNeoXRopeOfBothVersionsIsRead) {
  const auto rope = [](const char* patch) {
    return read(with(with(gpt_neox(), R"({"rope_parameters": null})"), patch)).rope;
  };
  EXPECT_EQ(rope("{}").rotary_dim, 2);
  EXPECT_EQ(rope(R"({"rotary_pct": 0.5, "rotary_emb_base": 500})").rotary_dim, 4);
  EXPECT_EQ(rope(R"({"rotary_pct": 0.5, "rotary_emb_base": 500})").base, 500.0);
  EXPECT_EQ(rope(R"({"rotary_pct": 1.0})").rotary_dim, 8);
  EXPECT_EQ(rope(R"({"rotary_pct": 0})").rotary_dim, 0);
  EXPECT_EQ(
      rope(R"({"rotary_pct": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75}})").rotary_dim,
      6);
  // transformers 4 wrote both names of both.
  EXPECT_EQ(rope(R"({"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 500,
                     "rope_theta": 500})")
                .base,
            500.0);
  EXPECT_EQ(rope(R"({"rope_scaling": {"type": "linear", "factor": 2}})").factor, 2.0);
  const Json old = with(gpt_neox(), R"({"rope_parameters": null, "rotary_pct": 0.5})");
  expect_refused(with(old, R"({"partial_rotary_factor": 0.25})"), "partial_rotary_factor'");
  expect_refused(with(old, R"({"rope_theta": 5})"), "'rope_theta' must be 10000");
  expect_refused(old, "rotary_pct", "a finite number >= 0", {-0.5, "0.5", false});
  expect_refused(with(old, R"({"rotary_pct": 1.5})"), "must be from 0 to 1");
  expect_refused(with(llama(), R"({"rotary_pct": 0.5})"), "'rotary_pct' (0.5) is not known");
}

}  // namespace
}  // namespace paperlab::nn
