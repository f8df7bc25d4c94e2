// The GPU's attention without a GPU: its block functions run on the CPU, warp by warp and lane by
// lane, against the textbook formula; and the arithmetic of what blocks are given.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "kernels/attention/cuda_launch.h"
#include "tests/kernels/attention_block_cases.h"
#include "tests/support/attention_emulation.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionTensors;
using test::BlockCase;
using test::Direction;
using test::EmulatedOrder;

testing::AssertionResult is_right(const BlockCase& of) {
  return test::is_right(of, [](AttentionTensors& tensors, Direction direction) {
    emulate_attention(tensors);
    if (direction == Direction::kBoth) {
      emulate_attention_backward(tensors);
    }
  });
}

class AttentionBlockCaseTest : public testing::TestWithParam<test::BlockCases> {};

TEST_P(AttentionBlockCaseTest, IsWithinTheBound) {
  for (const BlockCase& of : GetParam().make()) {
    EXPECT_TRUE(is_right(of));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AttentionBlockCaseTest, testing::ValuesIn(test::kBlockCases),
                         test::block_cases_name);

// ---------------------------------------------------------------------------------------------

TEST(AttentionBlockTest, TheOrderOfThreadsDoesNotMatter) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t queries : {2, 80}) {
      const AttentionCase of = {.num_heads = 2,
                                .num_queries = queries,
                                .num_keys = 600,
                                .head_dim = 100,
                                .dtype = dtype,
                                .rule = KeyRule::core_context(3, 50),
                                .num_prefix_heads = 1,
                                .has_prefix_query = true};
      AttentionTensors tensors(of);
      AttentionTensors reversed(of);
      emulate_attention(tensors);
      emulate_attention_backward(tensors);
      emulate_attention(reversed, EmulatedOrder::kReversed);
      emulate_attention_backward(reversed, EmulatedOrder::kReversed);
      EXPECT_TRUE(test::have_same_bits(tensors, reversed));
    }
  }
}

TEST(AttentionBlockTest, ANanInAKeyReachesTheRowsThatSeeIt) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t queries : {1, 70}) {
      AttentionTensors tensors(
          {.num_queries = queries, .num_keys = 600, .head_dim = 100, .dtype = dtype});
      tensors.key.set(0, 0, 541, 3, std::numeric_limits<double>::quiet_NaN());
      emulate_attention(tensors);
      for (std::int64_t t = 0; t < queries; ++t) {
        const bool is_seen = key_position(t, queries, 600) >= 541;
        EXPECT_EQ(std::isnan(tensors.lse.get(0, 0, t, 0)), is_seen) << t;
        EXPECT_EQ(std::isnan(tensors.out.get(0, 0, t, 7)), is_seen) << t;
      }
    }
  }
}

// Logits that overflow to -infinity are keys that are not there.
TEST(AttentionBlockTest, RowsWithoutFiniteLogitsAreZero) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t keys : {70, 1200}) {
      AttentionTensors tensors({.num_queries = 3,
                                .num_keys = keys,
                                .dtype = dtype,
                                .rule = KeyRule::full(),
                                .scale = -1.0});
      tensors.query.set_values(std::vector<double>(24, 1e30));
      tensors.key.set_values(std::vector<double>(static_cast<std::size_t>(keys) * 8, 1e30));
      emulate_attention(tensors);
      emulate_attention_backward(tensors);
      for (std::int64_t t = 0; t < 3; ++t) {
        EXPECT_EQ(tensors.lse.get(0, 0, t, 0), -std::numeric_limits<double>::infinity());
        EXPECT_EQ(tensors.out.get(0, 0, t, 5), 0.0);
        EXPECT_EQ(tensors.query_gradient.get(0, 0, t, 5), 0.0);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

// The keys that steps and their parts name, in order.
std::vector<std::int64_t> keys_of_steps(const KeySpan& span, std::int64_t step) {
  const KeySteps steps = key_steps(span, step);
  std::vector<std::int64_t> keys;
  for (std::int64_t i = 0; i < steps.count; ++i) {
    const KeyBlock block = step_block(steps, i, step);
    EXPECT_EQ(block.begin % step, 0);
    EXPECT_EQ(block.end, block.begin + step);
    const KeyBlock part = part_of(block, span);
    EXPECT_LT(part.begin, part.end);
    for (std::int64_t key = part.begin; key < part.end; ++key) {
      keys.push_back(block.is_prefix ? key - 1000 : key);
    }
  }
  return keys;
}

TEST(AttentionBlockShapeTest, StepsNameEveryKeyOfASpanOnce) {
  for (const std::int64_t step : {4, 16}) {
    for (std::int64_t prefix_end = 0; prefix_end <= 20; prefix_end += 3) {
      for (std::int64_t begin = 0; begin <= 20; ++begin) {
        for (std::int64_t end = 0; end <= 21; ++end) {
          const KeySpan span{prefix_end / 2, prefix_end, begin, end};
          std::vector<std::int64_t> expected;
          for (std::int64_t key = prefix_end / 2; key < prefix_end; ++key) {
            expected.push_back(key - 1000);
          }
          for (std::int64_t key = begin; key < end; ++key) {
            expected.push_back(key);
          }
          ASSERT_EQ(keys_of_steps(span, step), expected) << begin << " " << end;
        }
      }
    }
  }
}

TEST(AttentionBlockShapeTest, RunsNameEveryVisibleKeyOnce) {
  for (const std::int64_t num_keys : {0, 1, 64, 300, 5000, 200000}) {
    for (const std::int64_t num_prefix : {0, 5, 700}) {
      for (const std::int64_t head_dim : {1, 64, 128, 256}) {
        const KeyRuns runs(num_prefix, num_keys, head_dim);
        EXPECT_LE(runs.count, 256);
        EXPECT_EQ(runs.prefix_length % kTileKeys, 0);
        EXPECT_EQ(runs.raw_length % kTileKeys, 0);
        const VisibleKeys keys{num_prefix / 2, num_keys / 3, num_keys - num_keys / 5};
        std::int64_t entry = 0;
        std::int64_t key = keys.begin;
        for (std::int64_t i = 0; i < runs.count; ++i) {
          const KeySpan part = runs.part(i, keys);
          if (part.prefix_begin < part.prefix_end) {
            EXPECT_EQ(part.prefix_begin, entry);
            entry = part.prefix_end;
          }
          if (part.begin < part.end) {
            EXPECT_EQ(part.begin, key);
            key = part.end;
          }
        }
        EXPECT_EQ(entry, keys.prefix_end);
        EXPECT_EQ(key, keys.end);
      }
    }
  }
}

// Shapes alone: no tensor is read.
AttentionLaunch launch_of(const AttentionCase& of) {
  AttentionInputs in;
  const auto view = [&](std::int64_t heads, std::int64_t rows) {
    ConstTensorView tensor{&in, of.dtype, {of.batch, heads, rows, of.head_dim}};
    tensor.stride[0] = heads * rows * of.head_dim;
    tensor.stride[1] = rows * of.head_dim;
    tensor.stride[2] = of.head_dim;
    return tensor;
  };
  in.query = view(of.num_heads, of.num_queries);
  in.key = in.value = view(of.num_kv_heads, of.num_keys);
  if (of.num_prefix_heads > 0) {
    in.prefix_key = in.prefix_value = view(of.num_prefix_heads, num_prefix_entries(of));
  }
  in.rule = of.rule;
  return attention_launch(in, false);
}

TEST(AttentionBlockShapeTest, BlocksNameEveryRowOnceAndTheLastRowsFirst) {
  for (const std::int64_t shared : {1, 3}) {
    for (const std::int64_t queries : {1, 50, 64, 130}) {
      const AttentionLaunch launch = launch_of({.batch = 2,
                                                .num_heads = 2 * shared,
                                                .num_kv_heads = 2,
                                                .num_queries = queries,
                                                .num_keys = 7});
      std::set<std::vector<std::int64_t>> rows;
      std::int64_t last = launch.rows.num_rows;
      for (std::int64_t i = 0; i < num_row_tiles(launch, 64); ++i) {
        const RowTile tile = row_tile(launch, i, 64);
        EXPECT_LE(tile.first, last);
        last = tile.first;
        for (std::int64_t row = tile.first; row < tile.first + tile.count; ++row) {
          EXPECT_TRUE(rows.insert({tile.place.batch, tile.place.unit, row}).second);
        }
      }
      EXPECT_EQ(std::ssize(rows), 2 * launch.rows.num_units * launch.rows.num_rows);
    }
  }
}

TEST(AttentionBlockShapeTest, KeyTasksNameEveryKeyOnce) {
  for (const std::int64_t prefix_heads : {0, 2, 6}) {
    const KeyRule rule = prefix_heads == 0 ? KeyRule::dense() : KeyRule::core_context(1, 9);
    const AttentionLaunch launch = launch_of({.batch = 2,
                                              .num_heads = 6,
                                              .num_kv_heads = 2,
                                              .num_queries = 9,
                                              .num_keys = 130,
                                              .rule = rule,
                                              .num_prefix_heads = prefix_heads});
    std::set<std::vector<std::int64_t>> keys;
    for (std::int64_t i = 0; i < num_key_tasks(launch.in, 64); ++i) {
      const KeyTask task = key_task(launch, i, 64);
      EXPECT_EQ(task.first_unit, task.head * task.num_units);
      for (std::int64_t key = task.part.begin; key < task.part.end; ++key) {
        const std::int64_t is_prefix = task.part.is_prefix ? 1 : 0;
        EXPECT_TRUE(keys.insert({is_prefix, task.batch, task.head, key}).second);
      }
    }
    const std::int64_t entries = prefix_heads == 0 ? 0 : launch.in.prefix_key.size[2];
    EXPECT_EQ(std::ssize(keys), 2 * (260 + std::int64_t{prefix_heads} * entries));
  }
}

// Of every tile, whether some row of it sees a key of the block.
TEST(AttentionBlockShapeTest, TilesOfABlockAreThoseThatSeeIt) {
  KeyRule kept = KeyRule::core_context(3, 20);
  kept.kept = 10;
  for (const KeyRule& rule : {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(33),
                              KeyRule::core_context(2, 10), kept, KeyRule::sinks(7, 21)}) {
    const AttentionLaunch launch =
        launch_of({.num_queries = 150,
                   .num_keys = 170,
                   .rule = rule,
                   .num_prefix_heads = test::needs_prefix(rule) ? 1 : 0});
    for (std::int64_t i = 0; i < num_key_tasks(launch.in, 16); ++i) {
      const KeyBlock block = key_task(launch, i, 16).part;
      const TileRange tiles = tiles_of(launch, {0, 0}, block, 16);
      for (std::int64_t tile = 0; tile < ceil_div(150, 16); ++tile) {
        const TileKeys keys = keys_of_tile(launch, tile_number(launch, {0, 0}, tile, 16));
        const KeyBlock seen = seen_part(block, keys);
        const bool is_named = tile >= tiles.first && tile < tiles.last;
        EXPECT_EQ(is_named, seen.begin < seen.end) << static_cast<int>(rule.kind) << " " << i;
      }
    }
  }
}

TEST(AttentionBlockShapeTest, LimitsSeeWhatTheRuleSays) {
  const AttentionLaunch launch = launch_of({.num_heads = 2,
                                            .num_queries = 40,
                                            .num_keys = 50,
                                            .rule = KeyRule::core_context(3, 7),
                                            .num_prefix_heads = 1});
  for (std::int64_t row = 0; row < launch.rows.num_rows; ++row) {
    const RowLimits limits = limits_of(keys_of_row(launch, 0, row));
    for (int key = 0; key < 50; ++key) {
      EXPECT_EQ(limits.sees(false, key), test::sees_key(launch.in.rule, row / 2 + 10, key, 0, 50));
      EXPECT_EQ(limits.sees(true, key), test::sees_entry(launch.in.rule, row / 2 + 10, key, 0, 50));
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
