// All six gradients against the textbook's derivatives, and the results before them: every
// instruction set, every dtype.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/support/attention_exact.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionLayout;
using test::AttentionTensors;
using test::Direction;
using test::ExpectedAttention;
using test::GuardedTensor;
using test::KeyRanges;

void expect_right(const AttentionCase& of) {
  EXPECT_TRUE(test::is_right_everywhere(of, Direction::kBoth));
}

void expect_right_in_each_dtype(AttentionCase of) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    of.dtype = dtype;
    expect_right(of);
  }
}

TEST(AttentionBackwardTest, EveryPairOfTinyLengthsIsWithinTheBound) {
  for (std::int64_t queries = 0; queries <= 6; ++queries) {
    for (std::int64_t keys = 0; keys <= 6; ++keys) {
      expect_right_in_each_dtype(
          {.batch = 2, .num_heads = 2, .num_queries = queries, .num_keys = keys, .head_dim = 5});
    }
  }
}

TEST(AttentionBackwardTest, OddLengthsAreWithinTheBound) {
  for (const std::int64_t queries : {1, 3, 63, 65, 127}) {
    for (const std::int64_t keys : {1, 3, 63, 65, 127}) {
      for (const KeyRule rule : {KeyRule::dense(), KeyRule::full()}) {
        expect_right_in_each_dtype(
            {.num_queries = queries, .num_keys = keys, .head_dim = 16, .rule = rule});
      }
    }
  }
}

TEST(AttentionBackwardTest, LongRowsAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    expect_right({.num_queries = 500, .num_keys = 500, .head_dim = 64, .dtype = dtype});
    expect_right({.num_queries = 65, .num_keys = 500, .head_dim = 64, .dtype = dtype});
    expect_right({.num_queries = 500, .num_keys = 127, .head_dim = 64, .dtype = dtype});
  }
}

TEST(AttentionBackwardTest, LengthsAroundTilesAreWithinTheBound) {
  for (const std::int64_t length : {64, 128, 129, 192, 256, 257}) {
    expect_right({.num_queries = length, .num_keys = length});
    expect_right({.num_queries = length, .num_keys = length + 1, .rule = KeyRule::sliding(64)});
    expect_right({.num_queries = length + 1, .num_keys = length, .rule = KeyRule::sliding(65)});
  }
}

TEST(AttentionBackwardTest, EveryHeadSizeIsWithinTheBound) {
  for (std::int64_t head_dim = 1; head_dim <= 256; head_dim += head_dim < 70 ? 1 : 13) {
    expect_right({.num_queries = 9, .num_keys = 11, .head_dim = head_dim});
    expect_right(
        {.num_queries = 9, .num_keys = 11, .head_dim = head_dim, .dtype = DType::kBFloat16});
  }
  for (const std::int64_t head_dim : {1, 8, 24, 64, 80, 96, 128, 256}) {
    expect_right_in_each_dtype({.num_queries = 66, .num_keys = 67, .head_dim = head_dim});
  }
}

TEST(AttentionBackwardTest, GroupedHeadsAreWithinTheBound) {
  for (const std::int64_t shared : {1, 2, 3, 8}) {
    for (const std::int64_t queries : {1, 7, 40, 65}) {
      expect_right_in_each_dtype({.batch = 2,
                                  .num_heads = 3 * shared,
                                  .num_kv_heads = 3,
                                  .num_queries = queries,
                                  .num_keys = 66,
                                  .head_dim = 12});
    }
  }
}

TEST(AttentionBackwardTest, ManyKeyHeadsAreWithinTheBound) {
  for (const std::int64_t kv_heads : {4, 8, 16, 17}) {  // other numbers of private gradients
    expect_right(
        {.num_heads = 2 * kv_heads, .num_kv_heads = kv_heads, .num_queries = 40, .num_keys = 300});
  }
}

TEST(AttentionBackwardTest, WindowsAreWithinTheBound) {
  for (const std::int64_t window : {1, 5, 64, 100}) {
    for (const std::int64_t queries : {3, 130, 200}) {
      expect_right_in_each_dtype(
          {.num_queries = queries, .num_keys = 160, .rule = KeyRule::sliding(window)});
    }
  }
}

TEST(AttentionBackwardTest, CoreContextIsWithinTheBound) {
  for (const std::int64_t group : {1, 2, 3, 7, 16}) {
    for (const std::int64_t window : {0, 5, 32}) {
      for (const std::int64_t prefix_heads : {2, 4}) {
        expect_right({.num_heads = 4,
                      .num_kv_heads = 2,
                      .num_queries = 131,
                      .num_keys = 140,
                      .rule = KeyRule::core_context(group, window),
                      .num_prefix_heads = prefix_heads,
                      .has_prefix_query = window == 5});
      }
    }
  }
  for (const std::int64_t queries : {17, 150}) {
    expect_right_in_each_dtype({.batch = 2,
                                .num_heads = 6,
                                .num_kv_heads = 2,
                                .num_queries = queries,
                                .num_keys = 99,
                                .head_dim = queries == 17 ? 24 : 40,
                                .rule = KeyRule::core_context(4, 10),
                                .num_prefix_heads = 2,
                                .num_extra_entries = 2});
  }
}

TEST(AttentionBackwardTest, LongCoreContextIsWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    expect_right({.num_heads = 2,
                  .num_queries = 300,
                  .num_keys = 500,
                  .head_dim = 32,
                  .dtype = dtype,
                  .rule = KeyRule::core_context(2, 70),
                  .num_prefix_heads = 1});
  }
}

TEST(AttentionBackwardTest, SinksAreWithinTheBound) {
  for (const std::int64_t num_sinks : {0, 1, 4, 70}) {
    for (const std::int64_t window : {1, 5, 64}) {
      for (const std::int64_t prefix_heads : {2, 4}) {
        expect_right({.num_heads = 4,
                      .num_kv_heads = 2,
                      .num_queries = 131,
                      .num_keys = 140,
                      .rule = KeyRule::sinks(num_sinks, window),
                      .num_prefix_heads = prefix_heads,
                      .has_prefix_query = true});
      }
    }
  }
  expect_right_in_each_dtype({.num_queries = 66,
                              .num_keys = 30,
                              .rule = KeyRule::sinks(3, 4),
                              .num_prefix_heads = 1,
                              .num_extra_entries = 1});
}

TEST(AttentionBackwardTest, APrefixThatTheRuleHasNotGetsNoGradient) {
  for (const KeyRule rule : {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(3)}) {
    expect_right_in_each_dtype({.num_queries = 10,
                                .num_keys = 10,
                                .rule = rule,
                                .num_prefix_heads = 1,
                                .num_extra_entries = 3,
                                .has_prefix_query = true});
  }
}

TEST(AttentionBackwardTest, KeyRangesAreWithinTheBound) {
  const std::vector<KeyRule> rules = {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(9),
                                      KeyRule::core_context(3, 8), KeyRule::sinks(4, 9)};
  for (const KeyRanges ranges : {KeyRanges::kLeft, KeyRanges::kRight, KeyRanges::kBoth}) {
    for (const KeyRule& rule : rules) {
      for (const std::int64_t queries : {1, 66, 100}) {
        expect_right_in_each_dtype({.batch = 4,
                                    .num_heads = 2,
                                    .num_queries = queries,
                                    .num_keys = 90,
                                    .rule = rule,
                                    .num_prefix_heads = test::needs_prefix(rule) ? 1 : 0,
                                    .ranges = ranges});
      }
    }
  }
}

TEST(AttentionBackwardTest, WithoutAGradientOfLseItIsWithinTheBound) {
  for (const std::int64_t queries : {1, 10, 70}) {
    expect_right_in_each_dtype({.num_heads = 2,
                                .num_queries = queries,
                                .num_keys = 70,
                                .has_grad_lse = false,
                                .ranges = KeyRanges::kLeft});
  }
}

TEST(AttentionBackwardTest, LogitsOfTenThousandAreWithinTheBound) {
  for (const KeyRule rule : {KeyRule::full(), KeyRule::dense(), KeyRule::core_context(4, 20)}) {
    expect_right_in_each_dtype({.num_heads = 2,
                                .num_queries = 90,
                                .num_keys = 100,
                                .head_dim = 64,
                                .rule = rule,
                                .num_prefix_heads = test::needs_prefix(rule) ? 1 : 0,
                                .magnitude = 50.0});
  }
}

TEST(AttentionBackwardTest, AnyScaleIsWithinTheBound) {
  for (const double scale : {0.0, 1e-30, -1.0, 3.0, 100.0, -100.0}) {
    expect_right_in_each_dtype({.num_queries = 70, .num_keys = 70, .head_dim = 24, .scale = scale});
  }
}

TEST(AttentionBackwardTest, AnyAlignmentAndLayoutIsWithinTheBound) {
  for (const AttentionLayout layout :
       {AttentionLayout::kBHTD, AttentionLayout::kBTHD, AttentionLayout::kPadded}) {
    for (const std::int64_t offset : {0, 1, 3, 5}) {
      for (const std::int64_t queries : {1, 70}) {
        expect_right_in_each_dtype({.batch = 2,
                                    .num_heads = 4,
                                    .num_kv_heads = 2,
                                    .num_queries = queries,
                                    .num_keys = 75,
                                    .head_dim = 24,
                                    .rule = KeyRule::core_context(2, 9),
                                    .num_prefix_heads = 2,
                                    .has_prefix_query = true,
                                    .ranges = KeyRanges::kLeft,
                                    .layout = layout,
                                    .offset = offset});
      }
    }
  }
}

TEST(AttentionBackwardTest, NothingIsDoneForNoBatchRows) {
  expect_right_in_each_dtype({.batch = 0, .num_queries = 3, .num_keys = 3});
}

TEST(AttentionBackwardTest, TensorsWithoutElementsMayHaveNoMemory) {
  AttentionTensors tensors({.num_queries = 5, .num_keys = 0});
  AttentionInputs inputs = tensors.inputs();
  inputs.key.data = inputs.value.data = nullptr;
  tensors.run_forward(serial_executor());
  AttentionGradients gradients = tensors.gradients();
  gradients.key.data = gradients.value.data = nullptr;
  attention_backward(inputs, tensors.backward_inputs(), gradients, serial_executor());
  for (const double x : tensors.query_gradient.values()) {
    EXPECT_EQ(x, 0.0);
  }
}

// Rows before the first key, as of padding, may hold anything: nothing of theirs reaches the keys.
TEST(AttentionBackwardTest, RowsWithoutKeysMayHoldNan) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t queries : {1, 70}) {
      const std::int64_t num_without = queries == 1 ? 1 : 66;
      AttentionTensors tensors({.num_heads = 2,
                                .num_queries = queries,
                                .num_keys = queries - num_without,
                                .dtype = dtype});
      const ExpectedAttention expected = test::expected_attention(tensors, Direction::kBoth);
      for (GuardedTensor* tensor : {&tensors.query, &tensors.grad_out, &tensors.grad_lse}) {
        for (std::int64_t i = 0; i < tensor->num_elements(); ++i) {
          const auto [b, h, t, d] = tensor->index_of(i);
          if (t < num_without) {
            tensor->set(b, h, t, d, std::numeric_limits<double>::quiet_NaN());
          }
        }
      }
      for (const CpuIsa isa : test::all_isas()) {
        if (test::is_available(isa)) {
          const test::ScopedIsa scoped(isa);
          EXPECT_TRUE(test::is_right(tensors, expected, Direction::kBoth, serial_executor()));
        }
      }
    }
  }
}

// The loss is sum(grad_out out) + sum(grad_lse lse), as the reference computes it in float64; the
// error of a central difference with h = 1e-4 is h^2 times a third derivative of order one, plus
// 1e-16 |loss| / h.
TEST(AttentionBackwardTest, GradientIsTheCentralDifferenceOfTheLoss) {
  AttentionTensors tensors({.num_heads = 4,
                            .num_kv_heads = 2,
                            .num_queries = 5,
                            .num_keys = 7,
                            .head_dim = 3,
                            .dtype = DType::kFloat64,
                            .rule = KeyRule::core_context(2, 1),
                            .num_prefix_heads = 4,
                            .has_prefix_query = true});
  const auto loss = [&] {
    tensors.run_forward(serial_executor());
    double sum = 0.0;
    const auto add = [&](const GuardedTensor& a, const GuardedTensor& b) {
      const std::vector<double> x = a.values();
      const std::vector<double> y = b.values();
      for (std::size_t i = 0; i < x.size(); ++i) {
        sum += x[i] * y[i];
      }
    };
    add(tensors.grad_out, tensors.out);
    add(tensors.grad_lse, tensors.lse);
    return sum;
  };
  loss();
  tensors.run_backward(serial_executor());
  constexpr double kStep = 1e-4;
  const std::vector<GuardedTensor*> variables = {&tensors.query,      &tensors.key,
                                                 &tensors.value,      &tensors.prefix_query,
                                                 &tensors.prefix_key, &tensors.prefix_value};
  const std::vector<const GuardedTensor*> gradients = tensors.backward_results();
  for (std::size_t v = 0; v < variables.size(); ++v) {
    for (std::int64_t i = 0; i < variables[v]->num_elements(); ++i) {
      const auto [b, h, t, d] = variables[v]->index_of(i);
      const double before = variables[v]->get(b, h, t, d);
      variables[v]->set(b, h, t, d, before + kStep);
      const double up = loss();
      variables[v]->set(b, h, t, d, before - kStep);
      const double down = loss();
      variables[v]->set(b, h, t, d, before);
      ASSERT_NEAR(gradients[v]->get(b, h, t, d), (up - down) / (2.0 * kStep), 1e-7)
          << "variable " << v << ", element " << i;
    }
  }
}

// The definition in float64, whatever the dtype, is held to the same bound.
TEST(AttentionBackwardReferenceTest, IsWithinTheBound) {
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
    const ExpectedAttention expected = test::expected_attention(tensors, Direction::kBoth);
    attention_reference(tensors.inputs(), tensors.outputs());
    attention_backward_reference(tensors.inputs(), tensors.backward_inputs(), tensors.gradients());
    const std::vector<const GuardedTensor*> results = tensors.backward_results();
    ASSERT_EQ(results.size(), 6U);
    for (std::size_t i = 0; i < results.size(); ++i) {
      EXPECT_TRUE(test::is_within(*results[i], expected.backward[i]));
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
