// Tensors on other devices than the CPU, as far as a machine without a GPU can show.

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

#include "paperlab/core/error.h"
#include "paperlab/nn/decoder.h"
#include "paperlab/nn/rotary.h"
#include "paperlab/ops/device.h"
#include "tests/paperlab/nn/decoder_cases.h"

namespace paperlab::nn {
namespace {

RopeConfig rope(std::int64_t rotary_dim, std::int64_t max_positions,
                RopeScaling scaling = RopeScaling::kNone) {
  RopeConfig config;
  config.rotary_dim = rotary_dim;
  config.max_positions = max_positions;
  config.scaling = scaling;
  config.factor = 4.0;
  return config;
}

TEST(RotaryTables, RowsOfPositionsThatAreNotLookedAt) {
  const at::Tensor positions = at::tensor({0, 3, 1, 40, 39, 0}, at::kLong).view({2, 3});
  for (const RopeConfig& config : {rope(8, 64), rope(8, 16, RopeScaling::kDynamic), rope(2, 1)}) {
    const Rotary rotary(config);
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const RotaryTable wanted = rotary.at(positions, dtype, 41);
      const RotaryTable rows = rotary.rows(positions, 41, dtype);
      EXPECT_TRUE(at::equal(rows.cos, wanted.cos));
      EXPECT_TRUE(at::equal(rows.sin, wanted.sin));
    }
  }
}

// A batch of nothing but padding.
TEST(RotaryTables, RowsWithoutATokenToSee) {
  const RotaryTable rows = Rotary(rope(8, 64)).rows(at::zeros({1, 3}, at::kLong), 0, at::kFloat);
  EXPECT_TRUE(at::equal(rows.cos, at::ones({1, 3, 4})));
  EXPECT_TRUE(at::equal(rows.sin, at::zeros({1, 3, 4})));
}

TEST(RotaryTables, OnAnotherDevice) {
  const Rotary rotary(rope(8, 2048));
  const RotaryTable there = rotary.range(3, 5, at::kFloat, 0, at::kMeta);
  EXPECT_TRUE(there.cos.is_meta() && there.sin.is_meta());
  EXPECT_EQ(there.cos.sizes(), at::IntArrayRef({1, 5, 4}));
  EXPECT_TRUE(rotary.range(3, 5, at::kFloat).cos.is_cpu());
  EXPECT_TRUE(rotary.range(1 << 20, 2, at::kFloat, 0, at::kMeta).sin.is_meta());
}

TEST(DecoderDevice, ParametersMoveWithWhetherTheyRequireGradients) {
  Decoder decoder = new_decoder(llama());
  const at::Tensor first = *decoder.parameters().front().value;
  decoder.parameters()[1].value->set_requires_grad(true);
  decoder.to(at::kCPU);
  EXPECT_TRUE(decoder.parameters().front().value->is_same(first));
  decoder.to(at::kMeta);
  for (std::size_t i = 0; i < decoder.parameters().size(); ++i) {
    EXPECT_TRUE(decoder.parameters()[i].value->is_meta());
    EXPECT_EQ(decoder.parameters()[i].value->requires_grad(), i == 1);
  }
  EXPECT_THROW(decoder.forward(some_tokens()), c10::ValueError);
}

TEST(DecoderDevice, IdsThatAreNotLookedAtEndInLibTorchsError) {
  const Decoder decoder = new_decoder(llama());
  const ForwardOptions trusted{.checks_ids = false};
  EXPECT_TRUE(at::equal(decoder.forward(some_tokens(), trusted), decoder.forward(some_tokens())));
  EXPECT_THROW(decoder.forward(some_tokens().add(31), trusted), c10::Error);
  EXPECT_THROW(decoder.forward(some_tokens().select(0, 0), trusted), c10::ValueError);
}

TEST(RequireDevice, WhatIsNotThereIsRefused) {
  ops::require_device(at::kCPU);
  for (const char* name : {"cuda:99", "meta", "mps"}) {
    try {
      ops::require_device(at::Device(name));
      FAIL() << "no error for " << name;
    } catch (const UnsupportedError& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("device ") + name), std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace paperlab::nn
