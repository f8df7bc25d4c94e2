// A single query: split over its keys, and the same bits whatever else is in the batch.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
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

TEST(AttentionDecodeTest, AnyNumberOfKeysIsWithinTheBound) {
  for (const std::int64_t keys : {1, 2, 15, 16, 17, 63, 64, 65, 127, 500, 1025}) {
    expect_right_in_each_dtype(
        {.batch = 2, .num_heads = 4, .num_kv_heads = 2, .num_keys = keys, .head_dim = 20});
  }
}

TEST(AttentionDecodeTest, ManyRunsOfKeysAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t keys : {4096, 5001}) {  // at head size 128 a run has 128 keys
      expect_right({.num_heads = 4, .num_keys = keys, .head_dim = 128, .dtype = dtype});
    }
    expect_right({.num_keys = 20'001, .head_dim = 4, .dtype = dtype});
  }
}

TEST(AttentionDecodeTest, EveryHeadSizeIsWithinTheBound) {
  for (std::int64_t head_dim = 1; head_dim <= 256; head_dim += head_dim < 70 ? 1 : 13) {
    expect_right({.num_heads = 2, .num_keys = 40, .head_dim = head_dim});
    expect_right({.num_heads = 2, .num_keys = 40, .head_dim = head_dim, .dtype = DType::kBFloat16});
  }
}

TEST(AttentionDecodeTest, EveryNumberOfHeadsIsWithinTheBound) {
  for (std::int64_t shared = 1; shared <= 33; ++shared) {
    expect_right({.num_heads = 2 * shared, .num_kv_heads = 2, .num_keys = 70, .head_dim = 24});
    expect_right({.num_heads = 2 * shared,
                  .num_kv_heads = 2,
                  .num_keys = 70,
                  .head_dim = 24,
                  .dtype = DType::kBFloat16});
  }
}

TEST(AttentionDecodeTest, EveryRuleIsWithinTheBound) {
  const std::vector<KeyRule> rules = {KeyRule::full(),
                                      KeyRule::sliding(1),
                                      KeyRule::sliding(100),
                                      KeyRule::sliding(600),
                                      KeyRule::core_context(1, 0),
                                      KeyRule::core_context(4, 32),
                                      KeyRule::core_context(16, 5),
                                      KeyRule::sinks(4, 100),
                                      KeyRule::sinks(70, 64)};
  for (const KeyRule& rule : rules) {
    for (const std::int64_t prefix_heads : {2, 4}) {
      for (const bool has_prefix_query : {false, true}) {
        const bool has_prefix = test::needs_prefix(rule);
        expect_right_in_each_dtype({.batch = 2,
                                    .num_heads = 4,
                                    .num_kv_heads = 2,
                                    .num_keys = 300,
                                    .rule = rule,
                                    .num_prefix_heads = has_prefix ? prefix_heads : 0,
                                    .has_prefix_query = has_prefix && has_prefix_query});
      }
    }
  }
}

TEST(AttentionDecodeTest, KeyRangesAreWithinTheBound) {
  for (const KeyRanges ranges : {KeyRanges::kLeft, KeyRanges::kRight, KeyRanges::kBoth}) {
    for (const std::int64_t keys : {1, 7, 64, 1500}) {
      expect_right_in_each_dtype({.batch = 4,
                                  .num_heads = 2,
                                  .num_keys = keys,
                                  .head_dim = 40,
                                  .ranges = ranges,
                                  .layout = AttentionLayout::kPadded,
                                  .offset = 1});
    }
  }
}

// Views of one batch row.
AttentionInputs only_row(AttentionInputs inputs, std::int64_t b) {
  for (ConstTensorView* view : {&inputs.query, &inputs.key, &inputs.value, &inputs.prefix_query,
                                &inputs.prefix_key, &inputs.prefix_value}) {
    if (view->data != nullptr) {
      view->size[0] = 1;
      view->data = static_cast<const float*>(view->data) + b * view->stride[0];
    }
  }
  inputs.key_start = inputs.key_start == nullptr ? nullptr : inputs.key_start + b;
  inputs.key_end = inputs.key_end == nullptr ? nullptr : inputs.key_end + b;
  return inputs;
}

class AttentionDecodeIsaTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    isa_ = std::make_unique<test::ScopedIsa>(GetParam());
  }

 private:
  std::unique_ptr<test::ScopedIsa> isa_;
};

TEST_P(AttentionDecodeIsaTest, BitsOfABatchRowDoNotDependOnTheOthers) {
  for (const KeyRule rule : {KeyRule::dense(), KeyRule::core_context(3, 100)}) {
    AttentionTensors tensors({.batch = 5,
                              .num_heads = 6,
                              .num_kv_heads = 2,
                              .num_keys = 2000,
                              .head_dim = 64,
                              .rule = rule,
                              .num_prefix_heads = test::needs_prefix(rule) ? 2 : 0,
                              .ranges = KeyRanges::kBoth});
    const ThreadPool pool(2);
    tensors.run_forward(pool);
    AttentionTensors alone({.num_heads = 6, .num_kv_heads = 2, .head_dim = 64});
    for (std::int64_t b = 0; b < tensors.of.batch; ++b) {
      attention(only_row(tensors.inputs(), b), alone.outputs(), pool);
      for (std::int64_t h = 0; h < tensors.of.num_heads; ++h) {
        ASSERT_EQ(alone.lse.get(0, h, 0, 0), tensors.lse.get(b, h, 0, 0)) << b << ", " << h;
        for (std::int64_t d = 0; d < tensors.of.head_dim; ++d) {
          ASSERT_EQ(alone.out.get(0, h, 0, d), tensors.out.get(b, h, 0, d)) << b << ", " << h;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionDecodeIsaTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

}  // namespace
}  // namespace paperlab::kernels
