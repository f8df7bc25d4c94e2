#include "kernels/attention/tile.h"

#include <gtest/gtest.h>

#include <vector>

namespace paperlab::kernels {
namespace {

std::vector<KeyRule> rules() {
  std::vector<KeyRule> all = {KeyRule::full(), KeyRule::dense()};
  for (const std::int64_t window : {1, 2, 63, 64, 65, 130}) {
    all.push_back(KeyRule::sliding(window));
    all.push_back(KeyRule::sinks(3, window));
    for (const std::int64_t group : {1, 3, 16, 64}) {
      all.push_back(KeyRule::core_context(group, window));
      all.push_back(all.back());
      all.back().kept = 5;
      all.back().overlap = 1;
      all.push_back(all.back());
      all.back().overlap = 0;
      all.back().truncated = true;
    }
  }
  return all;
}

std::int64_t num_prefix_entries(const KeyRule& rule, std::int64_t num_keys) {
  return num_keys == 0 ? 0 : rule.visible(num_keys - 1, 0, num_keys).prefix_end;
}

TEST(AttentionTileTest, UnitsHoldEveryRowOfEveryHeadOnce) {
  for (std::int64_t key_heads = 1; key_heads <= 4; ++key_heads) {
    for (std::int64_t share = 1; share <= 4; ++share) {
      const std::int64_t heads = key_heads * share;
      for (const std::int64_t prefix_heads : {std::int64_t{0}, key_heads, heads}) {
        for (std::int64_t queries = 0; queries <= 70; ++queries) {
          const RowLayout layout = row_layout(heads, key_heads, prefix_heads, queries);
          EXPECT_EQ(layout.num_units * layout.heads_per_unit, heads);
          EXPECT_EQ(layout.units_per_key_head * key_heads, layout.num_units);
          EXPECT_EQ(layout.num_rows, queries * layout.heads_per_unit);
          EXPECT_GE(layout.num_tiles * kTileRows, layout.num_rows);
          EXPECT_LT((layout.num_tiles - 1) * kTileRows, layout.num_rows + (queries == 0 ? 1 : 0));
          if (prefix_heads != 0) {  // a unit reads one prefix head
            EXPECT_EQ((heads / prefix_heads) % layout.heads_per_unit, 0);
          }
        }
      }
    }
  }
}

TEST(AttentionTileTest, BlocksHoldEveryKeyOfBothStreamsOnceInOrder) {
  for (std::int64_t num_prefix = 0; num_prefix <= 130; num_prefix += 13) {
    for (std::int64_t num_keys = 0; num_keys <= 200; ++num_keys) {
      std::int64_t next[2] = {0, 0};
      for (std::int64_t i = 0; i < num_blocks(num_prefix) + num_blocks(num_keys); ++i) {
        const KeyBlock block = block_at(i, num_prefix, num_keys);
        EXPECT_EQ(block.begin, next[block.is_prefix ? 0 : 1]);
        EXPECT_GT(block.end, block.begin);
        EXPECT_LE(block.end - block.begin, kTileKeys);
        next[block.is_prefix ? 0 : 1] = block.end;
      }
      EXPECT_EQ(next[0], num_prefix);
      EXPECT_EQ(next[1], num_keys);
    }
  }
}

// What rows first..last see of a block, by enumeration.
void expect_parts(const KeyRule& rule, std::int64_t first, std::int64_t last, std::int64_t start,
                  std::int64_t end, const KeyBlock& block) {
  const TileKeys keys = tile_keys(rule.visible(first, start, end), rule.visible(last, start, end));
  const KeyBlock part = seen_part(block, keys);
  bool all_see_all = true;
  for (std::int64_t n = block.begin; n < block.end; ++n) {
    bool is_seen = false;
    for (std::int64_t p = first; p <= last; ++p) {
      const VisibleKeys row = rule.visible(p, start, end);
      const bool sees = block.is_prefix ? n < row.prefix_end : n >= row.begin && n < row.end;
      is_seen = is_seen || sees;
      all_see_all = all_see_all && sees;
    }
    // A gap between two rows' windows may be part of it, and is masked.
    EXPECT_TRUE(!is_seen || (n >= part.begin && n < part.end)) << n;
  }
  EXPECT_EQ(is_seen_by_all(block, keys), all_see_all);
  if (part.begin < part.end && !block.is_prefix) {
    EXPECT_GE(part.begin, start);
    EXPECT_LE(part.end, end);
  }
}

TEST(AttentionTileTest, PartsOfBlocksCoverWhatSomeRowSeesAndNoKeyOutOfTheRange) {
  constexpr std::int64_t kNumKeys = 200;
  for (const KeyRule& rule : rules()) {
    for (const std::int64_t start : {0, 1, 70}) {
      for (const std::int64_t end : {std::int64_t{71}, std::int64_t{150}, kNumKeys}) {
        for (const std::int64_t first : {-5, 0, 1, 62, 64, 136, 199}) {
          const std::int64_t last = smaller(first + 63, kNumKeys - 1);
          const std::int64_t num_prefix = num_prefix_entries(rule, kNumKeys);
          for (std::int64_t i = 0; i < num_blocks(num_prefix) + num_blocks(kNumKeys); ++i) {
            expect_parts(rule, first, last, start, end, block_at(i, num_prefix, kNumKeys));
          }
        }
      }
    }
  }
}

TEST(AttentionTileTest, ARowSeesTheKeysOfAPartBelowItsEnd) {
  for (std::int64_t begin = 0; begin <= 5; ++begin) {
    for (std::int64_t end = begin; end <= 9; ++end) {
      for (std::int64_t row_end = 0; row_end <= 12; ++row_end) {
        std::int64_t count = 0;
        for (std::int64_t n = begin; n < end; ++n) {
          count += n < row_end ? 1 : 0;
        }
        EXPECT_EQ(seen_keys(row_end, {false, begin, end}), count);
      }
    }
  }
}

TEST(AttentionTileTest, TasksAreLongOnlyWhereThereAreMany) {
  for (std::int64_t units = 1; units <= 64; ++units) {
    for (std::int64_t tiles = 1; tiles <= 64; ++tiles) {
      const std::int64_t per_task = tiles_per_task(units, tiles);
      EXPECT_TRUE(per_task == 1 || per_task == 2 || per_task == kMaxTilesPerTask);
      EXPECT_TRUE(per_task == 1 || units * ceil_div(tiles, per_task) >= kManyTasks);
    }
  }
}

TEST(AttentionTileTest, ChunksNeverDecreaseAndAreOfEqualWork) {
  for (std::int64_t heads = 1; heads <= 20; ++heads) {
    for (std::int64_t blocks = 0; blocks <= 40; ++blocks) {
      const std::int64_t chunks = num_key_chunks(heads, blocks);
      EXPECT_GE(chunks, 1);
      EXPECT_LE(chunks, kMaxKeyChunks);
      EXPECT_LE(chunks, larger(1, blocks));
      std::vector<std::int64_t> work(static_cast<std::size_t>(chunks), 0);
      std::int64_t before = 0;
      std::int64_t last = 0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t chunk = chunk_of(before, b + 1, blocks * (blocks + 1) / 2, chunks);
        EXPECT_GE(chunk, last);
        EXPECT_LT(chunk, chunks);
        work[static_cast<std::size_t>(chunk)] += b + 1;
        last = chunk;
        before += b + 1;
      }
      for (const std::int64_t w : work) {
        EXPECT_LE(w, before / chunks + 2 * blocks);  // at most a block more at either end
      }
    }
  }
}

TEST(AttentionTileTest, RunsOfASingleQueryCoverItsKeysAndAreFew) {
  for (const std::int64_t head_dim : {1, 24, 64, 80, 128, 256}) {
    for (std::int64_t keys = 0; keys <= 300000; keys = keys * 2 + 1) {
      const std::int64_t run = decode_run(keys, head_dim);
      EXPECT_EQ(run % kTileKeys, 0);
      EXPECT_GT(run, 0);
      EXPECT_GE(num_decode_runs(keys, head_dim) * run, keys);
      EXPECT_LE(num_decode_runs(keys, head_dim), 64);
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
