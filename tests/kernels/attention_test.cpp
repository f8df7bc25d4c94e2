// The forward pass against the textbook formula: every instruction set, every dtype.
#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/support/attention_exact.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionTensors;
using test::Direction;
using test::KeyRanges;

void expect_right(const AttentionCase& of) {
  EXPECT_TRUE(test::is_right_everywhere(of, Direction::kForward));
}

void expect_right_in_each_dtype(AttentionCase of) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    of.dtype = dtype;
    expect_right(of);
  }
}

class AttentionInstructionSetTest : public testing::TestWithParam<CpuIsa> {};

TEST_P(AttentionInstructionSetTest, IsAmongThoseTested) {
  if (!test::is_available(GetParam())) {
    GTEST_SKIP() << test::missing(GetParam());
  }
  const test::ScopedIsa isa(GetParam());
  EXPECT_EQ(cpu_isa(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionInstructionSetTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

TEST(AttentionTest, EveryPairOfTinyLengthsIsWithinTheBound) {
  for (std::int64_t queries = 0; queries <= 7; ++queries) {
    for (std::int64_t keys = 0; keys <= 7; ++keys) {
      expect_right_in_each_dtype(
          {.batch = 2, .num_heads = 2, .num_queries = queries, .num_keys = keys, .head_dim = 5});
    }
  }
}

TEST(AttentionTest, OddLengthsAreWithinTheBound) {
  for (const std::int64_t queries : {1, 3, 63, 65, 127}) {
    for (const std::int64_t keys : {1, 3, 63, 65, 127}) {
      for (const KeyRule rule : {KeyRule::dense(), KeyRule::full()}) {
        expect_right_in_each_dtype({.num_heads = 2,
                                    .num_kv_heads = 2,
                                    .num_queries = queries,
                                    .num_keys = keys,
                                    .head_dim = 16,
                                    .rule = rule});
      }
    }
  }
}

TEST(AttentionTest, LongRowsAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    expect_right({.num_queries = 500, .num_keys = 500, .head_dim = 64, .dtype = dtype});
    expect_right({.num_queries = 65, .num_keys = 500, .head_dim = 64, .dtype = dtype});
    expect_right({.num_queries = 500, .num_keys = 127, .head_dim = 64, .dtype = dtype});
  }
}

TEST(AttentionTest, LengthsAroundTilesAreWithinTheBound) {
  for (const std::int64_t length : {64, 128, 129, 192, 256, 257}) {
    expect_right({.num_queries = length, .num_keys = length});
    expect_right({.num_queries = length, .num_keys = length + 1, .rule = KeyRule::sliding(64)});
    expect_right({.num_queries = length + 1, .num_keys = length, .rule = KeyRule::sliding(65)});
  }
}

TEST(AttentionTest, EveryHeadSizeIsWithinTheBound) {
  for (std::int64_t head_dim = 1; head_dim <= 256; head_dim += head_dim < 70 ? 1 : 13) {
    expect_right({.num_queries = 9, .num_keys = 11, .head_dim = head_dim});
    expect_right(
        {.num_queries = 9, .num_keys = 11, .head_dim = head_dim, .dtype = DType::kBFloat16});
  }
  for (const std::int64_t head_dim : {1, 8, 24, 64, 80, 96, 128, 256}) {
    expect_right_in_each_dtype({.num_heads = 2,
                                .num_kv_heads = 2,
                                .num_queries = 70,
                                .num_keys = 75,
                                .head_dim = head_dim});
  }
}

TEST(AttentionTest, GroupedHeadsAreWithinTheBound) {
  for (const std::int64_t shared : {1, 2, 3, 8}) {
    for (const std::int64_t queries : {1, 7, 40, 65}) {
      expect_right_in_each_dtype({.batch = 2,
                                  .num_heads = 3 * shared,
                                  .num_kv_heads = 3,
                                  .num_queries = queries,
                                  .num_keys = 66,
                                  .head_dim = 24});
    }
  }
}

TEST(AttentionTest, WindowsAreWithinTheBound) {
  for (const std::int64_t window : {1, 5, 64, 100}) {
    for (const std::int64_t queries : {3, 130, 200}) {
      expect_right_in_each_dtype({.num_heads = 2,
                                  .num_queries = queries,
                                  .num_keys = 160,
                                  .rule = KeyRule::sliding(window)});
    }
  }
}

// The prefix stream, key ranges and layouts: attention_backward_test.cpp, whose cases check the
// results of the forward pass too.

TEST(AttentionTest, LogitsOfTenThousandAreWithinTheBound) {
  for (const KeyRule rule : {KeyRule::full(), KeyRule::dense(), KeyRule::core_context(4, 20)}) {
    expect_right_in_each_dtype({.num_heads = 2,
                                .num_queries = 90,
                                .num_keys = 100,
                                .head_dim = 64,
                                .rule = rule,
                                .num_prefix_heads = test::needs_prefix(rule) ? 1 : 0,
                                .magnitude = 50.0});
  }
  expect_right_in_each_dtype({.num_keys = 300, .head_dim = 64, .magnitude = 50.0});
}

TEST(AttentionTest, AnyScaleIsWithinTheBound) {
  for (const double scale : {0.0, 1e-30, -1.0, 3.0, 100.0, -100.0}) {
    expect_right_in_each_dtype({.num_queries = 70, .num_keys = 70, .head_dim = 24, .scale = scale});
    expect_right_in_each_dtype({.num_keys = 70, .head_dim = 24, .scale = scale});
  }
}

// Whatever its payload; a row that sees it has no other answer.
TEST(AttentionTest, ANanInAKeyReachesTheRowsThatSeeIt) {
  for (const std::uint64_t bits : {0x7FF8000000000000U, 0xFFFFFFFFFFFFFFFFU}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
      for (const std::int64_t queries : {1, 70}) {
        AttentionTensors tensors(
            {.num_heads = 2, .num_queries = queries, .num_keys = 80, .dtype = dtype});
        tensors.key.set(0, 0, 41, 3, std::bit_cast<double>(bits));
        for (const CpuIsa isa : test::all_isas()) {
          if (!test::is_available(isa)) {
            continue;
          }
          const test::ScopedIsa scoped(isa);
          tensors.run_forward(serial_executor());
          for (std::int64_t t = 0; t < queries; ++t) {
            if (key_position(t, queries, 80) >= 41) {
              ASSERT_TRUE(std::isnan(tensors.lse.get(0, 1, t, 0))) << literal_of(tensors.of);
              ASSERT_TRUE(std::isnan(tensors.out.get(0, 1, t, 7))) << literal_of(tensors.of);
            }
          }
        }
      }
    }
  }
}

TEST(AttentionTest, NothingIsDoneForNoBatchRowsOrHeads) {
  for (const std::int64_t queries : {1, 3}) {
    expect_right_in_each_dtype({.batch = 0, .num_queries = queries, .num_keys = 3});
    for (const std::int64_t kv_heads : {0, 1}) {
      AttentionTensors tensors({.num_queries = queries, .num_keys = 3});
      AttentionInputs inputs = tensors.inputs();
      AttentionOutputs outputs = tensors.outputs();
      inputs.query.size[1] = outputs.out.size[1] = 0;
      inputs.key.size[1] = inputs.value.size[1] = kv_heads;
      attention(inputs, outputs, serial_executor());
      EXPECT_TRUE(std::isnan(tensors.out.get(0, 0, 0, 0)));
      EXPECT_TRUE(std::isnan(tensors.lse.get(0, 0, 0, 0)));
    }
  }
}

TEST(AttentionTest, TensorsWithoutElementsMayHaveNoMemory) {
  for (const std::int64_t queries : {1, 70}) {
    AttentionTensors tensors({.num_queries = queries});
    AttentionInputs inputs = tensors.inputs();
    inputs.key.data = inputs.value.data = nullptr;
    inputs.key.size[2] = inputs.value.size[2] = 0;
    attention(inputs, tensors.outputs(), serial_executor());
    for (const double x : tensors.out.values()) {
      EXPECT_EQ(x, 0.0);
    }
    for (const double x : tensors.lse.values()) {
      EXPECT_EQ(x, -std::numeric_limits<double>::infinity());
    }
  }
}

// The definition in float64, whatever the dtype, is held to the same bound.
TEST(AttentionReferenceTest, IsWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    AttentionTensors tensors({.batch = 2,
                              .num_heads = 4,
                              .num_kv_heads = 2,
                              .num_queries = 50,
                              .num_keys = 40,
                              .head_dim = 20,
                              .dtype = dtype,
                              .rule = KeyRule::core_context(3, 4),
                              .num_prefix_heads = 4,
                              .has_prefix_query = true,
                              .ranges = KeyRanges::kBoth});
    const test::ExpectedAttention expected = test::expected_attention(tensors, Direction::kForward);
    attention_reference(tensors.inputs(), tensors.outputs());
    EXPECT_TRUE(test::is_within(tensors.out, expected.forward[0]));
    EXPECT_TRUE(test::is_within(tensors.lse, expected.forward[1]));
  }
}

}  // namespace
}  // namespace paperlab::kernels
