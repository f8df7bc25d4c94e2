// Families of strings by parities: the packed forms agree with the plain ones.
#include "kernels/common/affine_strings.h"

#include <gtest/gtest.h>

#include <bit>
#include <set>
#include <string>

#include "kernels/one_layer_fold/tile.h"
#include "paperlab/core/rng.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

std::string text(const AffineGroup& group, std::uint32_t i) {
  std::string out;
  for (int l = 0; l < group.length; ++l) {
    out += affine_token(group, l, i) == 0 ? 'a' : 'b';
  }
  return out;
}

TEST(AffineStringsTest, ParityIsThatOfTheNumberOfBits) {
  for (std::uint64_t i = 0; i < 1000; ++i) {
    for (const std::uint32_t word : philox_block(5, 0, i).word) {
      EXPECT_EQ(parity(word), std::popcount(word) % 2);
    }
  }
  EXPECT_EQ(parity(0U), 0);
  EXPECT_EQ(parity(0x80000000U), 1);
  EXPECT_EQ(parity(0xFFFFFFFFU), 0);
}

TEST(AffineStringsTest, LaneParitiesAreEightParities) {
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const PhiloxBlock random = philox_block(6, 0, i);
    const std::uint32_t mask = random.word[0];
    const std::uint32_t block = random.word[1] >> 3U;
    const std::uint8_t lanes = lane_parities(mask, block);
    for (std::uint32_t lane = 0; lane < 8; ++lane) {
      EXPECT_EQ((lanes >> lane) & 1, parity((8 * block + lane) & mask));
    }
  }
}

TEST(AffineStringsTest, GroupsOfALengthAreAllItsStringsOnce) {
  std::set<std::string> seen;
  for (const AffineGroup& group : test::even_pairs_groups(8)) {
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
      const std::string string = text(group, i);
      EXPECT_TRUE(seen.insert(string).second) << string;
      EXPECT_EQ(affine_label(group, i), string.front() == string.back() ? 1 : -1) << string;
    }
  }
  EXPECT_EQ(seen.size(), (1U << 9U) - 2U);
}

TEST(AffineStringsTest, AStringIsItsRowAndItsColumn) {
  for (const AffineGroup& group : test::random_groups(12, 21)) {
    ASSERT_TRUE(is_foldable(group));
    const FoldShape shape = fold_shape(group.num_bits);
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
      const int row = static_cast<int>(row_mask(shape, i));
      const auto column = column_mask(shape, i);
      for (int l = 0; l + 1 < group.length; ++l) {
        const bool is_columns = column_mask(shape, group.mask[l]) != 0;
        const std::uint8_t eight =
            column_tokens(group, shape, l, static_cast<int>(column / kColumnLanes));
        const int token =
            is_columns ? (eight >> (column % kColumnLanes)) & 1 : row_token(group, shape, l, row);
        ASSERT_EQ(token, affine_token(group, l, i)) << "position " << l << " of string " << i;
      }
    }
  }
}

TEST(AffineStringsTest, TheSingleStringOfLengthOneIsPositive) {
  for (const AffineGroup& group : test::even_pairs_groups(1)) {
    EXPECT_EQ(affine_label(group, 0), 1);
    EXPECT_EQ(affine_token(group, 0, 0), group.query);
  }
}

}  // namespace
}  // namespace paperlab::kernels
