#include "kernels/group_pool/group_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/group_pool/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/support/group_pool_exact.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using test::GuardedTensor;
using test::PoolCase;
using test::PoolTensors;

void run(PoolTensors& tensors, const Executor& executor) {
  group_pool(tensors.inputs(), tensors.outputs(), executor);
  group_pool_backward(tensors.inputs(), tensors.gradients(), executor);
}

std::vector<std::byte> bytes_of(const PoolTensors& tensors) {
  std::vector<std::byte> bytes;
  for (const auto& results : {tensors.results(), tensors.gradient_results()}) {
    for (const GuardedTensor* tensor : results) {
      const std::vector<std::byte> more = tensor->all_bytes();
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
  }
  return bytes;
}

class GroupPoolTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    before_ = cpu_isa();
    set_cpu_isa(cpu_isa_name(GetParam()));
  }
  void TearDown() override { set_cpu_isa(cpu_isa_name(before_)); }

 private:
  CpuIsa before_ = cpu_isa();
};

TEST_P(GroupPoolTest, RandomCasesAreWithinTheBound) {
  for (std::uint64_t seed = 0; seed < 250; ++seed) {
    PoolTensors tensors(test::random_pool_case(seed));
    ASSERT_TRUE(test::is_pooled_right(tensors, serial_executor()));
  }
}

TEST_P(GroupPoolTest, EveryWidthAndGroupIsWithinTheBound) {
  for (std::int64_t size = 1; size <= 40; ++size) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      PoolTensors wide({.num_tokens = 7, .num_queries = 7, .head_dim = size, .dtype = dtype});
      ASSERT_TRUE(test::is_pooled_right(wide, serial_executor()));
      PoolTensors long_group({.num_heads = 2,
                              .num_tokens = 2 * size + 1,
                              .num_queries = 2 * size + 1,
                              .head_dim = 5,
                              .group = size,
                              .dtype = dtype});
      ASSERT_TRUE(test::is_pooled_right(long_group, serial_executor()));
    }
  }
}

// Many tasks, on one thread and on three.
TEST_P(GroupPoolTest, TheBitsDoNotDependOnTheExecutor) {
  const ThreadPool pool(3);
  for (const PoolKind kind : {PoolKind::kAttention, PoolKind::kMean, PoolKind::kMax}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      PoolTensors tensors({.batch = 2,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .num_tokens = 700,
                           .num_queries = 700,
                           .head_dim = 128,
                           .group = 16,
                           .first = 3,
                           .has_start = true,
                           .kind = kind,
                           .dtype = dtype});
      run(tensors, serial_executor());
      const std::vector<std::byte> serial = bytes_of(tensors);
      run(tensors, pool);
      EXPECT_EQ(bytes_of(tensors), serial);
    }
  }
}

// A cache's append: the newest group alone, with the query of its last token alone.
TEST_P(GroupPoolTest, AGroupAloneHasTheBitsItHasAmongOthers) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    PoolTensors all({.num_heads = 4,
                     .num_kv_heads = 2,
                     .num_tokens = 41,
                     .num_queries = 41,
                     .head_dim = 20,
                     .group = 5,
                     .dtype = dtype});
    group_pool(all.inputs(), all.outputs(), serial_executor());
    const std::vector<std::byte> wanted = all.core_key.all_bytes();
    const auto rows = [dtype](auto view, std::int64_t first, std::int64_t count) {
      const std::int64_t bytes = first * view.stride[2] * (dtype == DType::kFloat32 ? 4 : 2);
      using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                                      const char, char>;
      view.data = static_cast<Byte*>(view.data) + bytes;
      view.size[2] = count;
      return view;
    };
    const GroupPoolOutputs out = all.outputs();
    for (std::int64_t c = 0; c < 8; ++c) {
      GroupPoolInputs in = all.inputs();
      in.query = rows(in.query, 5 * c + 4, 1);
      in.key = rows(in.key, 5 * c, 5);
      in.value = rows(in.value, 5 * c, 5);
      group_pool(in, {rows(out.key, c, 1), rows(out.value, c, 1)}, serial_executor());
    }
    EXPECT_EQ(all.core_key.all_bytes(), wanted);
  }
}

TEST_P(GroupPoolTest, GroupsOfOneTokenAreTheTokens) {
  for (const PoolKind kind : {PoolKind::kAttention, PoolKind::kMean, PoolKind::kMax}) {
    PoolTensors tensors(
        {.num_tokens = 9, .num_queries = 9, .head_dim = 19, .group = 1, .kind = kind});
    group_pool(tensors.inputs(), tensors.outputs(), serial_executor());
    EXPECT_EQ(tensors.core_key.values(), tensors.key.values());
    EXPECT_EQ(tensors.core_value.values(), tensors.value.values());
  }
}

TEST_P(GroupPoolTest, LargeLogitsChooseOneToken) {
  PoolTensors tensors({.num_tokens = 32,
                       .num_queries = 32,
                       .head_dim = 33,
                       .group = 16,
                       .magnitude = 1000.0});  // logits of some 1e6
  run(tensors, serial_executor());
  for (const GuardedTensor* result : {&tensors.core_key, &tensors.grad_key, &tensors.grad_value}) {
    for (const double x : result->values()) {
      ASSERT_TRUE(std::isfinite(x));
    }
  }
  for (std::int64_t c = 0; c < 2; ++c) {
    bool is_a_token = false;
    for (std::int64_t t = 16 * c; t < 16 * c + 16; ++t) {
      is_a_token =
          is_a_token || tensors.value.get(0, 0, t, 0) == tensors.core_value.get(0, 0, c, 0);
    }
    EXPECT_TRUE(is_a_token);
  }
}

// Of equal maxima, and of several NaNs, the first has the gradient.
TEST_P(GroupPoolTest, TheFirstMaximumHasTheGradient) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    PoolTensors tensors({.num_tokens = 4,
                         .num_queries = 4,
                         .head_dim = 3,
                         .group = 4,
                         .kind = PoolKind::kMax,
                         .dtype = dtype});
    tensors.key.set_values({1, -1, 2, 3, -2, nan, 3, -1, 9, 0, -3, nan});
    run(tensors, serial_executor());
    const std::vector<double> core = tensors.core_key.values();
    EXPECT_EQ(core[0], 3.0);
    EXPECT_EQ(core[1], -1.0);
    EXPECT_TRUE(std::isnan(core[2]));
    const std::vector<double> g = tensors.grad_core_key.values();
    EXPECT_EQ(tensors.grad_key.values(),
              (std::vector<double>{0, g[1], 0, g[0], 0, g[2], 0, 0, 0, 0, 0, 0}));
  }
}

TEST_P(GroupPoolTest, WithoutGroupsGradientsAreZero) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t tokens : {0, 5}) {
      PoolTensors tensors({.batch = 2,
                           .num_heads = 2,
                           .num_tokens = tokens,
                           .num_queries = tokens,
                           .head_dim = 6,
                           .group = 6,
                           .dtype = dtype});
      run(tensors, serial_executor());
      for (const GuardedTensor* gradient : tensors.gradient_results()) {
        for (const double x : gradient->values()) {
          EXPECT_EQ(x, 0.0);
        }
      }
    }
  }
}

// Nobody's weights: those of the mean; without pooled heads gradients are zeros.
TEST_P(GroupPoolTest, KeyHeadsWithoutQueryHeads) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const bool per_kv_head : {false, true}) {
      PoolCase of = {.batch = 2,
                     .num_heads = 0,
                     .num_kv_heads = 2,
                     .num_tokens = 11,
                     .num_queries = 11,
                     .head_dim = 5,
                     .group = 3,
                     .per_kv_head = per_kv_head,
                     .dtype = dtype};
      PoolTensors tensors(of);
      run(tensors, serial_executor());
      if (per_kv_head) {
        of.num_heads = 2;
        of.kind = PoolKind::kMean;
        PoolTensors mean(of);
        run(mean, serial_executor());
        EXPECT_EQ(tensors.core_key.values(), mean.core_key.values());
        EXPECT_EQ(tensors.grad_value.values(), mean.grad_value.values());
      } else {
        EXPECT_EQ(tensors.core_key.num_elements(), 0);
        EXPECT_EQ(tensors.grad_key.values(), std::vector<double>(220));
        EXPECT_EQ(tensors.grad_value.values(), std::vector<double>(220));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, GroupPoolTest, testing::ValuesIn(test::all_isas()), test::isa_name);

double loss(PoolTensors& tensors) {
  group_pool_reference(tensors.inputs(), tensors.outputs());
  const std::vector<double> key = tensors.core_key.values();
  const std::vector<double> value = tensors.core_value.values();
  const std::vector<double> grad_key = tensors.grad_core_key.values();
  const std::vector<double> grad_value = tensors.grad_core_value.values();
  double sum = 0.0;
  for (std::size_t i = 0; i < key.size(); ++i) {
    sum += key[i] * grad_key[i] + value[i] * grad_value[i];
  }
  return sum;
}

// Central differences of step 1e-6 have an error of some 1e-10: squares of the step, and the loss's
// own 1e-15 over the step.
void expect_differences(PoolTensors& tensors, GuardedTensor& input, const GuardedTensor& gradient) {
  const std::vector<double> wanted = gradient.values();
  for (std::int64_t i = 0; i < input.num_elements(); ++i) {
    const auto [b, h, t, d] = input.index_of(i);
    const double x = input.get(b, h, t, d);
    if (std::isnan(x)) {
      EXPECT_EQ(wanted[static_cast<std::size_t>(i)], 0.0);
      continue;
    }
    input.set(b, h, t, d, x + 1e-6);
    const double above = loss(tensors);
    input.set(b, h, t, d, x - 1e-6);
    const double below = loss(tensors);
    input.set(b, h, t, d, x);
    EXPECT_NEAR((above - below) / 2e-6, wanted[static_cast<std::size_t>(i)], 2e-8);
  }
}

TEST(GroupPoolReferenceTest, GradientsAreThoseOfFiniteDifferences) {
  for (const PoolKind kind : {PoolKind::kAttention, PoolKind::kMean, PoolKind::kMax}) {
    for (const bool per_kv_head : {false, true}) {
      PoolTensors tensors({.batch = 2,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .num_tokens = 13,
                           .num_queries = 12,
                           .head_dim = 3,
                           .group = 3,
                           .first = 1,
                           .has_start = true,
                           .per_kv_head = per_kv_head,
                           .kind = kind,
                           .dtype = DType::kFloat64});
      group_pool_backward_reference(tensors.inputs(), tensors.gradients());
      expect_differences(tensors, tensors.key, tensors.grad_key);
      expect_differences(tensors, tensors.value, tensors.grad_value);
      if (kind == PoolKind::kAttention) {
        expect_differences(tensors, tensors.query, tensors.grad_query);
      }
    }
  }
}

struct BadInput {
  const char* message;
  std::function<void(GroupPoolInputs&, GroupPoolOutputs&)> change;
};

std::vector<BadInput> bad_inputs() {
  static const std::vector<std::int64_t> below = {0, -1};
  static const std::vector<std::int64_t> above = {0, 14};
  using In = GroupPoolInputs;
  using Out = GroupPoolOutputs;
  return {
      {"head_dim must be in 1..256, got 0", [](In& in, Out&) { in.key.size[3] = 0; }},
      {"head_dim must be in 1..256, got 257", [](In& in, Out&) { in.key.size[3] = 257; }},
      {"value must be [2, 2, 13, 3], got [2, 2, 12, 3]", [](In& in, Out&) { --in.value.size[2]; }},
      {"value must be of the dtype of key, got another",
       [](In& in, Out&) { in.value.dtype = DType::kBFloat16; }},
      {"key must be contiguous in its last dimension, got stride 2",
       [](In& in, Out&) { in.key.stride[3] = 2; }},
      {"group must be at least 1, got 0", [](In& in, Out&) { in.group = 0; }},
      {"first must be at least 0, got -1", [](In& in, Out&) { in.first = -1; }},
      {"start must be in 0..13, got -1", [](In& in, Out&) { in.start = below.data(); }},
      {"start must be in 0..13, got 14", [](In& in, Out&) { in.start = above.data(); }},
      {"query must be [2, 4, 13, 3], got [2, 4, 13, 4]", [](In& in, Out&) { ++in.query.size[3]; }},
      {"query must be of the dtype of key, got another",
       [](In& in, Out&) { in.query.dtype = DType::kFloat64; }},
      {"query's heads must be a multiple of key's (2), got 3",
       [](In& in, Out&) { in.query.size[1] = 3; }},
      {"query must have at most 13 tokens, got 14", [](In& in, Out&) { in.query.size[2] = 14; }},
      {"query must hold the last token of every group, so at least 10 tokens, got 9",
       [](In& in, Out&) { in.query.size[2] = 9; }},
      {"core_key must have as many heads as query or key (mean, max: as key), got [2, 3, 4, 3]",
       [](In&, Out& out) { out.key.size[1] = 3; }},
      {"core_key must have as many heads as query or key (mean, max: as key), got [2, 4, 4, 3]",
       [](In& in, Out&) { in.kind = PoolKind::kMax; }},
      {"core_key must have at most 4 groups, got [2, 4, 5, 3]",
       [](In&, Out& out) { out.key.size[2] = 5; }},
      {"core_value must be [2, 4, 4, 3], got [2, 4, 3, 3]",
       [](In&, Out& out) { out.value.size[2] = 3; }},
      {"core_key must be contiguous in its last dimension, got stride 2",
       [](In&, Out& out) { out.key.stride[3] = 2; }}};
}

TEST(GroupPoolArgumentsTest, BadInputIsRefusedBeforeAnyWork) {
  for (const BadInput& bad : bad_inputs()) {
    PoolTensors tensors({.batch = 2,
                         .num_heads = 4,
                         .num_kv_heads = 2,
                         .num_tokens = 13,
                         .num_queries = 13,
                         .head_dim = 3,
                         .group = 3,
                         .first = 1});
    GroupPoolInputs in = tensors.inputs();
    GroupPoolOutputs out = tensors.outputs();
    bad.change(in, out);
    try {
      group_pool(in, out, serial_executor());
      ADD_FAILURE() << bad.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), std::string("group_pool: ") + bad.message);
    }
    for (const GuardedTensor* result : tensors.results()) {
      for (const double x : result->values()) {
        ASSERT_TRUE(std::isnan(x));
      }
    }
  }
}

TEST(GroupPoolTileTest, ItemsAreEveryGroupOfEveryKeyHeadOnce) {
  for (std::int64_t heads = 1; heads <= 3; ++heads) {
    for (std::int64_t groups = 0; groups <= 4; ++groups) {
      const PoolLayout layout = {.batch = 2,
                                 .key_heads = heads,
                                 .query_share = 1,
                                 .pooled_share = 1,
                                 .num_tokens = 20,
                                 .num_queries = 20,
                                 .groups = groups,
                                 .group = 4,
                                 .head_dim = 8};
      EXPECT_EQ(layout.num_items(false), 2 * heads * groups);
      std::int64_t number = 0;
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t h = 0; h < heads; ++h) {
          for (std::int64_t c = 0; c < (groups == 0 ? 1 : groups); ++c, ++number) {
            const PoolItem item = item_at(number, layout);
            EXPECT_TRUE(item.batch == b && item.key_head == h && item.group == c);
          }
        }
      }
      EXPECT_EQ(layout.num_items(true), number);
      EXPECT_GE(items_of_task(layout), 1);
      for (std::int64_t first = 0; first <= 22; ++first) {
        EXPECT_EQ(layout.complete(first), std::min(groups, num_groups(20, first, 4)));
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
