// Attention's forward pass on Hopper without a GPU: ring, boxes, swizzle, descriptors and fragments
// as arithmetic; and its block functions on the CPU against the textbook formula.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/attention/block_hopper.h"
#include "kernels/attention/cuda_hopper.h"
#include "kernels/attention/cuda_launch.h"
#include "kernels/common/cuda/tma_map.h"
#include "paperlab/core/error.h"
#include "tests/kernels/attention_hopper_cases.h"
#include "tests/support/attention_hopper_emulation.h"
#include "tests/support/attention_hopper_roles.h"
#include "tests/support/shared_accesses.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionTensors;
using test::BlockCase;
using test::Direction;
using test::EmulatedOrder;
using test::Roles;

// --- boxes and matrices ------------------------------------------------------------------------

TEST(SwizzleTest, IsThatOfTilesThatThreadsFill) {
  for (int row = 0; row < 128; ++row) {
    for (int column = 0; column < kBoxColumns; ++column) {
      const int at = chunk_at(row, column / kChunk, kBoxColumns) + column % kChunk;
      EXPECT_EQ(swizzled(static_cast<std::uint32_t>(kBoxRowBytes * row + 2 * column)),
                static_cast<std::uint32_t>(2 * at));
    }
  }
}

// The manual's figures of the 128-byte swizzle, by chunk numbers of 16 bytes.
TEST(SwizzleTest, IsTheDocumentedPattern) {
  const auto chunk = [](std::uint32_t i) { return swizzled(16 * i) / 16; };
  EXPECT_EQ(chunk(0), 0U);
  EXPECT_EQ(chunk(7), 7U);
  EXPECT_EQ(chunk(8), 9U);
  EXPECT_EQ(chunk(9), 8U);
  EXPECT_EQ(chunk(8 * 7), 8U * 7 + 7);
  EXPECT_EQ(chunk(8 * 8 + 3), 8U * 8 + 3);
}

// Fields at their places of the manual.
TEST(DescriptorTest, IsTheDocumentedWord) {
  const std::uint64_t word = matrix_descriptor(0x2C400, 16384);
  EXPECT_EQ(word & 0x3FFFU, 0x2C400U >> 4U);
  EXPECT_EQ(word >> 16U & 0x3FFFU, 1024U);
  EXPECT_EQ(word >> 32U & 0x3FFFU, 64U);  // 1024 bytes: eight rows
  EXPECT_EQ(word >> 49U & 7U, 0U);
  EXPECT_EQ(word >> 62U, 1U);
  EXPECT_EQ(matrix_descriptor(0x3FC00, 0) & 0x3FFFU, 0x3FC0U);
  EXPECT_EQ(matrix_descriptor(0x7FC00, 0) & 0x3FFFU, 0x3FC0U);  // 18 bits of an address
}

// Element (row, column) of a tile of panels lies where a box or chunk_at puts it.
std::uint32_t place_in_tile(std::uint32_t base, int rows, int row, int column) {
  const int panel = column / kBoxColumns;
  const int at = panel * rows * kBoxColumns +
                 chunk_at(row, column % kBoxColumns / kChunk, kBoxColumns) + column % kChunk;
  return base + 2 * static_cast<std::uint32_t>(at);
}

TEST(DescriptorTest, AlongRowsNamesEveryElementOfATile) {
  constexpr std::uint32_t kBase = 7 * kSwizzleBytes;
  for (const int rows : {64, 128}) {
    for (int column = 0; column < 128; ++column) {
      const int panel = column / kBoxColumns;
      const std::uint64_t first =
          matrix_descriptor(kBase + static_cast<std::uint32_t>(panel * rows * kBoxRowBytes), 0);
      const std::uint64_t matrix = inner_along_rows(first, column % kBoxColumns / 16);
      for (int row = 0; row < rows; ++row) {
        ASSERT_EQ(element_address(matrix, false, row, column % 16),
                  place_in_tile(kBase, rows, row, column));
      }
    }
  }
}

TEST(DescriptorTest, AcrossRowsNamesEveryElementOfATile) {
  constexpr std::uint32_t kBase = 5 * kSwizzleBytes;
  constexpr int kRows = 128;
  const std::uint64_t first = matrix_descriptor(kBase, kRows * kBoxRowBytes);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < 128; ++column) {
      ASSERT_EQ(element_address(inner_across_rows(first, row / 16), true, column, row % 16),
                place_in_tile(kBase, kRows, row, column));
    }
  }
}

TEST(GroupFragmentTest, EveryElementHasOneThread) {
  std::set<std::pair<int, int>> sums;
  std::set<std::pair<int, int>> left;
  for (int thread = 0; thread < kGroup; ++thread) {
    for (int i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_sums(thread, i);
      EXPECT_TRUE(at.row < 64 && at.column < 8 && sums.insert({at.row, at.column}).second);
    }
    for (int i = 0; i < 8; ++i) {
      const MatrixPlace at = group_place(thread, place_in_a(thread % kWarp, i));
      EXPECT_TRUE(at.row < 64 && at.column < 16 && left.insert({at.row, at.column}).second);
    }
  }
  EXPECT_EQ(place_in_sums(37, 3), (MatrixPlace{25, 3}));  // warp 1, lane 5
  EXPECT_EQ(place_in_sums(127, 0), (MatrixPlace{55, 6}));
}

TEST(BoxTest, BringsWhatIsThereAndZeros) {
  std::vector<std::uint16_t> elements(std::size_t{2} * 3 * 80 * 5);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    elements[i] = static_cast<std::uint16_t>(i + 1);
  }
  // Two batch rows, three heads, five rows of 72 elements, 80 apart.
  const BoxTensor tensor{elements.data(), DType::kFloat16, {72, 5, 3, 2}, {160, 800, 2400}, 8};
  std::vector<std::uint16_t> box(std::size_t{8} * kBoxColumns, 0xFFFF);
  for (const int column : {0, 64}) {
    for (const int row : {0, 3, -2}) {
      fetch_box_host(tensor, {column, row, 2, 1}, box.data(), kSwizzleBytes);
      for (int r = 0; r < 8; ++r) {
        for (int c = 0; c < kBoxColumns; ++c) {
          const bool is_there = row + r >= 0 && row + r < 5 && column + c < 72;
          const int at = ((1 * 3 + 2) * 5 + row + r) * 80 + column + c;
          const int place = chunk_at(r, c / kChunk, kBoxColumns) + c % kChunk;
          ASSERT_EQ(box[static_cast<std::size_t>(place)], is_there ? at + 1 : 0);
        }
      }
    }
  }
}

// --- the ring ----------------------------------------------------------------------------------

TEST(RingTest, APhaseIsWaitedForWhereItCannotBeMistaken) {
  for (int stages = 1; stages <= 4; ++stages) {
    for (int item = 0; item < 40; ++item) {
      const RingPlace at = ring_place(item, stages);
      EXPECT_EQ(at.stage, item % stages);
      EXPECT_EQ(at.filled, at.freed + 1);
      EXPECT_EQ(at.filled, item / stages);
      EXPECT_NE(parity_of(at.filled), parity_of(at.freed));
    }
  }
  EXPECT_EQ(parity_of(-1), 1U);  // what a barrier calls ended before its first phase
}

// One that fills a ring of two with numbers and one that reads them.
class Ring {
 public:
  explicit Ring(bool is_late) : roles_(is_late) {
    for (int i = 0; i < 2; ++i) {
      roles_.init(filled_[i], 1);
      roles_.init(freed_[i], 1);
    }
  }
  void fill(int item, int freed) {
    const int stage = ring_place(item, 2).stage;
    roles_.await(freed_[stage], freed);
    roles_.expect(filled_[stage], 4);
    roles_.fetch(filled_[stage], 4, [this, stage, item] { value_[stage] = item; });
  }
  void read(int item, int filled) {
    const int stage = ring_place(item, 2).stage;
    roles_.await(filled_[stage], filled);
    read_.push_back(value_[stage]);
    roles_.arrive(freed_[stage]);
  }
  const std::vector<int>& run(int num_filled, int num_read, int freed_shift) {
    roles_.run({[=, this] {
                  for (int i = 0; i < num_filled; ++i) {
                    fill(i, ring_place(i, 2).freed + freed_shift);
                  }
                },
                [=, this] {
                  for (int i = 0; i < num_read; ++i) {
                    read(i, ring_place(i, 2).filled);
                  }
                }});
    return read_;
  }

 private:
  Roles roles_;
  Barrier filled_[2] = {};
  Barrier freed_[2] = {};
  int value_[2] = {-1, -1};
  std::vector<int> read_;
};

TEST(RolesTest, ARingBringsEveryItemInOrder) {
  const std::vector<int> expected{0, 1, 2, 3, 4, 5, 6, 7, 8};
  for (const bool is_late : {false, true}) {
    EXPECT_EQ(Ring(is_late).run(9, 9, 0), expected);
  }
}

TEST(RolesTest, FaultsOfARingAreFound) {
  for (const bool is_late : {false, true}) {
    EXPECT_THROW(Ring(is_late).run(9, 10, 0), std::logic_error);  // nobody can go on
    EXPECT_THROW(Ring(is_late).run(9, 9, 1), std::logic_error);   // waits for what never comes
    EXPECT_THROW(Ring(is_late).run(9, 9, -1), std::logic_error);  // a parity that deceives
  }
  EXPECT_THROW(Ring(true).run(2, 0, 0), std::logic_error);  // copies under way at the end
}

TEST(SharedAccessesTest, WhatABarrierMustBeBetweenIsFound) {
  constexpr int kOther = kWarp;  // a thread of another warp
  test::SharedAccesses of(64);
  of.write(0, 0);
  of.read(0, 31);  // the same warp
  EXPECT_THROW(of.read(15, kOther), std::logic_error);
  EXPECT_THROW(of.begin_product(0), std::logic_error);
  of.barrier(/*shows_writes=*/false);
  of.read(0, kOther);
  EXPECT_THROW(of.begin_product(0), std::logic_error);  // ordered, but not shown
  of.barrier(/*shows_writes=*/true);
  of.begin_product(0);
  of.write(16, 0);  // elsewhere
  EXPECT_THROW(of.write(0, 0), std::logic_error);
  of.barrier(/*shows_writes=*/true);
  EXPECT_THROW(of.write(0, 0), std::logic_error);  // still under way
  of.end_product(0);
  EXPECT_THROW(of.write(0, 0), std::logic_error);  // other warps' may be
  of.barrier(/*shows_writes=*/false);
  of.write(0, 0);
}

TEST(TensorMapTest, AnErrorSaysWhatTheDriverWasTold) {
  const BoxTensor tensor{nullptr, DType::kBFloat16, {72, 5, 3, 2}, {160, 800, 2400}, 128};
  EXPECT_EQ(text_of(tensor),
            "bfloat16 of sizes [72, 5, 3, 2] (columns, rows, heads, batch) at 0x0 with "
            "strides of [160, 800, 2400] bytes in boxes of 128 rows");
}

// --- which problems ----------------------------------------------------------------------------

bool takes_hopper(const AttentionCase& of) {
  AttentionTensors tensors(of);
  return fits_hopper(forward_launch(tensors.inputs(), tensors.outputs(), &tensors));
}

TEST(HopperProblemTest, TakesRowsThatBoxesCanName) {
  const AttentionCase of = {.batch = 2,
                            .num_heads = 2,
                            .num_queries = 70,
                            .num_keys = 70,
                            .head_dim = 64,
                            .dtype = DType::kBFloat16};
  AttentionCase other = of;
  EXPECT_TRUE(takes_hopper(other));
  other.head_dim = 128;
  EXPECT_TRUE(takes_hopper(other));
  for (const std::int64_t head_dim : {60, 136, 256}) {
    other.head_dim = head_dim;
    EXPECT_FALSE(takes_hopper(other)) << head_dim;
  }
  other = of;
  other.offset = 1;
  EXPECT_FALSE(takes_hopper(other));
  other = of;
  other.num_queries = 4;
  other.num_keys = 4000;  // split
  EXPECT_FALSE(takes_hopper(other));
}

TEST(HopperProblemTest, LeavesRepeatedKeysToOtherBlocks) {
  AttentionTensors tensors(
      {.num_queries = 70, .num_keys = 70, .head_dim = 64, .dtype = DType::kBFloat16});
  AttentionInputs in = tensors.inputs();
  in.key.stride[0] = in.key.stride[1] = 0;  // one head of one batch row: never used
  const AttentionOutputs out = tensors.outputs();
  EXPECT_TRUE(fits_hopper(forward_launch(in, out, nullptr)));
  EXPECT_EQ(key_boxes(in.key, 128).stride[1], 128U);
  in.key.stride[2] = 0;
  EXPECT_FALSE(fits_hopper(forward_launch(in, out, nullptr)));
  in.key.stride[2] = std::int64_t{1} << 39;
  EXPECT_FALSE(fits_hopper(forward_launch(in, out, nullptr)));
}

// Rows are counted in 32 bits on a GPU, for any blocks.
TEST(HopperProblemTest, TooManyRowsAreRefused) {
  AttentionTensors tensors({.num_queries = 1, .num_keys = 1, .dtype = DType::kBFloat16});
  AttentionInputs in = tensors.inputs();
  in.query.size[2] = std::int64_t{1} << 31;
  EXPECT_THROW(forward_launch(in, tensors.outputs(), nullptr), ShapeError);
}

// --- the block ---------------------------------------------------------------------------------

testing::AssertionResult is_right(const BlockCase& of, EmulatedOrder order) {
  return test::is_right({of.of, Direction::kForward}, [&](AttentionTensors& tensors, Direction) {
    if (!emulate_attention_hopper(tensors, order)) {
      emulate_attention(tensors, order);
    }
  });
}

// The cases of the other blocks that this path takes, in bfloat16 or float16.
class AttentionHopperCaseTest : public testing::TestWithParam<test::BlockCases> {};

TEST_P(AttentionHopperCaseTest, IsWithinTheBound) {
  bool is_late = false;
  for (const BlockCase& of : GetParam().make()) {
    const bool is_half = of.of.dtype == DType::kBFloat16 || of.of.dtype == DType::kFloat16;
    if (is_half && takes_hopper(of.of)) {
      EXPECT_TRUE(is_right(of, is_late ? EmulatedOrder::kReversed : EmulatedOrder::kForward));
      is_late = !is_late;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AttentionHopperCaseTest, testing::ValuesIn(test::kBlockCases),
                         test::block_cases_name);
INSTANTIATE_TEST_SUITE_P(OwnCases, AttentionHopperCaseTest, testing::ValuesIn(test::kHopperCases),
                         test::block_cases_name);

// Keys that several heads or batch rows share by strides of 0 are no boxes.
TEST(AttentionHopperTest, TakesItsOwnCasesButForRepeatedKeys) {
  for (const test::BlockCases& cases : test::kHopperCases) {
    for (const BlockCase& of : cases.make()) {
      const bool is_repeated = of.of.layout == test::AttentionLayout::kShared &&
                               (of.of.batch > 1 || of.of.num_kv_heads > 1);
      EXPECT_EQ(takes_hopper(of.of), !is_repeated) << cases.name;
    }
  }
}

TEST(AttentionHopperTest, RandomCasesAreWithinTheBound) {
  int num_taken = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    AttentionCase of = test::random_attention_case(seed, 400000);
    of.dtype = seed % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
    of.head_dim = smaller(ceil_div(of.head_dim, 8) * 8, 128);
    of.offset = 0;
    if (takes_hopper(of)) {
      ++num_taken;
      EXPECT_TRUE(
          is_right({of}, seed % 4 < 2 ? EmulatedOrder::kForward : EmulatedOrder::kReversed));
    }
  }
  EXPECT_GT(num_taken, 30);
}

TEST(AttentionHopperTest, TheOrderOfRolesDoesNotMatter) {
  for (const BlockCase& of : {test::ring_rounds().front(), test::ring_rounds().back()}) {
    AttentionTensors tensors(of.of);
    AttentionTensors reversed(of.of);
    EXPECT_TRUE(emulate_attention_hopper(tensors));
    EXPECT_TRUE(emulate_attention_hopper(reversed, EmulatedOrder::kReversed));
    EXPECT_TRUE(test::have_same_bits(tensors, reversed, Direction::kForward));
  }
}

// The value of a key beyond those that a tile's rows see must not reach them, where a key's only
// reaches the rows that see it.
TEST(AttentionHopperTest, ANanReachesTheRowsThatSeeIt) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  AttentionTensors tensors(
      {.num_queries = 300, .num_keys = 333, .head_dim = 72, .dtype = DType::kBFloat16});
  tensors.key.set(0, 0, 200, 71, kNan);
  tensors.value.set(0, 0, 290, 70, kNan);  // rows 257 on, in the last tile of rows alone
  EXPECT_TRUE(emulate_attention_hopper(tensors));
  for (std::int64_t t = 0; t < 300; ++t) {
    const bool sees_key = key_position(t, 300, 333) >= 200;
    EXPECT_EQ(std::isnan(tensors.lse.get(0, 0, t, 0)), sees_key) << t;
    EXPECT_EQ(std::isnan(tensors.out.get(0, 0, t, 70)), sees_key) << t;
  }
}

}  // namespace
}  // namespace paperlab::kernels
