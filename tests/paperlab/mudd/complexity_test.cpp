#include "paperlab/mudd/complexity.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>

#include "paperlab/mudd/config.h"
#include "paperlab/mudd/layout.h"
#include "tests/paperlab/mudd/mudd_cases.h"

namespace paperlab::mudd {
namespace {

// Table 1, to the digits that it prints.
TEST(ComplexityTest, RatiosAreThoseOfTable1) {
  struct Row {
    std::int64_t num_layers, d_model;
    double params, flops, eta, rho;  // percent, percent
    double flops_step;               // the last printed digit's unit
  };
  constexpr Row kRows[] = {{24, 2048, 0.22, 0.38, 0.0132, 2.0, 0.01},
                           {42, 1536, 0.49, 0.8, 0.0293, 2.67, 0.1},
                           {32, 2560, 0.23, 0.4, 0.0137, 1.6, 0.1},
                           {32, 4096, 0.14, 0.26, 0.0085, 1.0, 0.01}};
  for (const Row& row : kRows) {
    const Complexity got = complexity(row.num_layers, row.d_model, 4096);
    EXPECT_NEAR(100.0 * got.param_ratio, row.params, 0.005) << row.d_model;
    EXPECT_NEAR(100.0 * got.flop_ratio, row.flops, row.flops_step / 2.0) << row.d_model;
    EXPECT_NEAR(got.eta, row.eta, 0.00005) << row.d_model;
    EXPECT_NEAR(got.rho, row.rho, 0.005) << row.d_model;
  }
}

TEST(ComplexityTest, SumsHaveTheirClosedForms) {
  for (std::int64_t layers = 1; layers <= 50; ++layers) {
    const Complexity got = complexity(layers, 96, 512);
    EXPECT_EQ(got.sum_hidden, 2 * layers * (layers + 3));
    EXPECT_EQ(got.sum_hidden_squared,
              16 * ((layers + 1) * (layers + 2) * (2 * layers + 3) / 6 - 1));
    EXPECT_EQ(got.extra_params, 96 * got.sum_hidden + got.sum_hidden_squared);
    EXPECT_EQ(got.base_params, 12 * layers * 96 * 96);
    EXPECT_EQ(got.extra_flops,
              512 * (192 * got.sum_hidden + 2 * got.sum_hidden_squared + 192 * got.sum_hidden));
    EXPECT_EQ(got.base_flops, 2 * layers * 96 * 512 * (12 * 96 + 512));
    EXPECT_EQ(got.generator_params, got.extra_params + got.sum_hidden);
    EXPECT_FALSE(got.memory_ratio_mudd || got.memory_ratio_denseformer);
  }
}

TEST(ComplexityTest, GeneratorsOfTheReleasedShapes) {
  EXPECT_EQ(complexity(24, 1024, 2048).generator_params, 1'416'784);
  EXPECT_EQ(complexity(32, 2560, 2048).generator_params, 5'937'088);
  EXPECT_EQ(complexity(32, 4096, 2048).generator_params, 9'377'728);
  EXPECT_EQ(complexity(24, 1024, 2048).generator_params_released, 2'355'269);
  EXPECT_EQ(complexity(32, 2560, 2048).generator_params_released, 8'775'709);
  EXPECT_EQ(complexity(32, 4096, 2048).generator_params_released, 13'887'517);
}

// The counters agree with the tensors of a model.
TEST(ComplexityTest, CountsAreThoseOfTheParameters) {
  for (const std::int64_t layers : {1, 3, 24}) {
    MuddConfig config = small(Variant::kMultiwayDynamic);
    config.num_layers = layers;
    config.hidden_round = 64;
    std::int64_t count = 0;
    for (const nn::ParameterSpec& spec : parameter_specs(config)) {
      if (spec.name.starts_with("dense_bs.") || spec.name.starts_with("dynamic_dense.")) {
        std::int64_t size = 1;
        for (const std::int64_t extent : spec.shape) {
          size *= extent;
        }
        count += size;
      }
    }
    EXPECT_EQ(count, complexity(layers, 64, 1).generator_params_released);
  }
}

// Table 6: additions over Transformer++'s 2 L B T D + B T D (34 + 6 N T / D).
TEST(ComplexityTest, MemoryRatios) {
  const Complexity got = complexity(24, 1024, 2048, 16);
  EXPECT_DOUBLE_EQ(got.memory_ratio_denseformer.value_or(0.0), 24.0 / (24.0 + 17.0 + 96.0));
  EXPECT_DOUBLE_EQ(got.memory_ratio_mudd.value_or(0.0), 27.0 / (24.0 + 17.0 + 96.0));
}

TEST(ComplexityTest, BadArgumentsAreNamed) {
  const auto error = [](std::int64_t layers, std::int64_t width, std::int64_t length,
                        std::optional<std::int64_t> heads) {
    return value_error([&] { complexity(layers, width, length, heads); });
  };
  EXPECT_TRUE(error(0, 8, 8, 1).starts_with("complexity: num_layers"));
  EXPECT_TRUE(error(10'001, 8, 8, 1).starts_with("complexity: num_layers"));
  EXPECT_TRUE(error(8, 0, 8, 1).starts_with("complexity: d_model"));
  EXPECT_TRUE(error(8, 8, 0, 1).starts_with("complexity: seq_len"));
  EXPECT_TRUE(error(8, 8, 8, 0).starts_with("complexity: num_heads"));
  EXPECT_NE(error(10'000, 0x7fffffff, 0x7fffffff, 1).find("d_model"), std::string::npos);
}

}  // namespace
}  // namespace paperlab::mudd
