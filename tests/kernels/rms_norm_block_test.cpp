// The GPU's blocks of rms_norm, run on the CPU.

#include "kernels/rms_norm/block.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "kernels/rms_norm/block_backward.h"
#include "tests/kernels/rms_norm_cases.h"
#include "tests/support/cuda_emulation.h"

namespace paperlab::kernels {
namespace {

using rms_norm_cases::Case;
using rms_norm_cases::expect_right;

template <class T>
void emulate_forward(Case& of, bool is_reversed) {
  const RmsNormForward problem = of.forward();
  const RowPlan plan = rms_norm_plan<T>(problem);
  test::emulate_blocks<RmsNormRegisters<T>, RmsNormMemory<T>>(
      plan.team.num_turns(problem.num_rows), plan.team.threads(), is_reversed,
      [&](auto& team, auto& memory, std::int64_t block) {
        rms_norm_block<T>(team, memory, problem, plan, block);
      });
}

template <class T>
void emulate_backward(Case& of, bool is_reversed) {
  using Number = NumberOf<T>;
  const RmsNormBackward problem = of.backward();
  const RmsGradPlan plan = rms_grad_plan<T>(problem);
  const int threads = plan.rows.team.threads();
  std::vector<Number> scratch(static_cast<std::size_t>(scratch_size(problem, plan)),
                              std::numeric_limits<Number>::quiet_NaN());
  if (plan.has_means()) {
    test::emulate_blocks<RmsGradRegisters<T>, RmsGradMemory<T>>(
        plan.rows.team.num_turns(problem.num_rows), threads, is_reversed,
        [&](auto& team, auto& memory, std::int64_t block) {
          rms_grad_means_block<T>(team, memory, problem, plan, block,
                                  scratch.data() + means_at(problem, plan));
        });
  }
  test::emulate_blocks<RmsGradRegisters<T>, RmsGradMemory<T>>(
      plan.num_parts * plan.rows.num_chunks, threads, is_reversed,
      [&](auto& team, auto& memory, std::int64_t block) {
        rms_grad_block<T>(team, memory, problem, plan, block, scratch.data());
      });
  test::emulate_blocks<NoRegisters, PartMemory<T>>(
      num_part_blocks(problem.width), kPartThreads, is_reversed,
      [&](auto& team, auto& memory, std::int64_t block) {
        sum_parts_block<T>(team, memory, scratch.data(), plan.num_parts, problem.width, block,
                           static_cast<T*>(problem.grad_weight));
      });
}

void emulate(Case& of, bool is_reversed = false) {
  with_element(of.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    emulate_forward<T>(of, is_reversed);
    emulate_backward<T>(of, is_reversed);
  });
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

TEST(RmsNormBlockTest, BothPassesAreWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {0, 1, 3, 17}) {
      for (const std::int64_t width : {1, 3, 8, 17, 63, 64, 576}) {
        for (const bool adds : {false, true}) {
          Case of(dtype, rows, width, adds, width == 64 ? 1 : 0);
          emulate(of);
          expect_right(of);
        }
      }
    }
  }
}

// Several warps a row; the last width of each dtype needs several chunks.
TEST(RmsNormBlockTest, WideRowsAreWithinTheBound) {
  for (const DType dtype : kDTypes) {
    const std::int64_t in_registers = 32768 / test::bytes_of(dtype);
    for (const std::int64_t width :
         {std::int64_t{1000}, in_registers / 2, in_registers / 2 + 1, in_registers + 40}) {
      Case of(dtype, 3, width, width % 3 == 0);
      emulate(of);
      expect_right(of);
    }
  }
}

// More turns than parts, so that a part has several.
TEST(RmsNormBlockTest, ManyRowsAreWithinTheBound) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat64}) {
    Case of(dtype, 280, 1 + 4096 / test::bytes_of(dtype), true);
    emulate(of);
    expect_right(of);
  }
}

TEST(RmsNormBlockTest, OrderOfThreadsAndBlocksDoesNotMatter) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t width : {40, 2000, 17000}) {
      Case forward(dtype, 9, width, true);
      Case reversed = forward;
      emulate(forward);
      emulate(reversed, /*is_reversed=*/true);
      EXPECT_TRUE(forward.has_same_results(reversed));
    }
  }
}

// A row's bits do not depend on the other rows.
TEST(RmsNormBlockTest, ARowAloneHasTheBitsItHasAmongOthers) {
  Case all(DType::kBFloat16, 9, 64, false);
  emulate(all);
  for (std::int64_t row = 0; row < 9; ++row) {
    Case one(DType::kBFloat16, 1, 64, false);
    for (std::int64_t d = 0; d < 64; ++d) {
      one.x.set(d, all.x.at(row * 64 + d));
      one.grad_y.set(d, all.grad_y.at(row * 64 + d));
    }
    emulate(one);
    for (std::int64_t d = 0; d < 64; ++d) {
      ASSERT_EQ(one.y.at(d), all.y.at(row * 64 + d));
      ASSERT_EQ(one.grad_x.at(d), all.grad_x.at(row * 64 + d));
    }
  }
}

// Every pack of a row belongs to one thread, and threads of a turn have disjoint rows.
TEST(RowTeamTest, EveryPackOfARowHasOneThread) {
  for (const int packs : {1, 2, 4}) {
    for (const int most : {32, 256, 512}) {
      for (std::int64_t of_row = 0; of_row < 5000; of_row = of_row * 5 / 4 + 1) {
        const RowTeam team = row_team(of_row, packs, most);
        ASSERT_LE(team.lanes(), most);
        ASSERT_TRUE(team.threads() == kRowThreads ||
                    (team.rows == 1 && team.lanes() > kRowThreads));
        std::vector<int> count(static_cast<std::size_t>(of_row), 0);
        for (int thread = 0; thread < team.threads(); ++thread) {
          ASSERT_LT(team.row(thread), team.rows);
          for (std::int64_t chunk = 0; chunk < team.num_chunks(of_row); ++chunk) {
            for (int k = 0; k < packs; ++k) {
              const std::int64_t pack = team.pack(thread, chunk, k);
              if (team.row(thread) == 0 && pack < of_row) {
                ++count[static_cast<std::size_t>(pack)];
              }
            }
          }
        }
        for (const int n : count) {
          ASSERT_EQ(n, 1);
        }
      }
    }
  }
}

// The host's forms round as the definition does, for every number of 16 bits and between them.
TEST(ElementsTest, EveryNumberOf16BitsComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float x = to_number(BFloat16{half});
    const float y = to_number(Float16{half});
    if (!std::isnan(x)) {
      ASSERT_EQ(to_element<BFloat16>(x).bits, half);
    }
    if (!std::isnan(y)) {
      ASSERT_EQ(to_element<Float16>(y).bits, half);
    }
  }
}

TEST(ElementsTest, PacksHoldElementsInOrder) {
  for (const DType dtype : kDTypes) {
    with_element(dtype, [&](auto element) {
      using T = typename decltype(element)::Type;
      constexpr int kSize = kPackSize<T>;
      test::RowTensor from(dtype, kSize);
      from.randomize(1);
      for (int count = -1; count <= kSize + 1; ++count) {
        const Pack pack = load_some(static_cast<const T*>(from.data()), count);
        NumberOf<T> numbers[kSize];
        unpack<T>(pack, numbers);
        test::RowTensor to(dtype, kSize);
        store_some(static_cast<T*>(to.data()), count, to_pack<T>(numbers));
        for (int i = 0; i < kSize; ++i) {
          ASSERT_EQ(numbers[i], i < count ? from.at(i) : 0.0);
          ASSERT_TRUE(i < count ? to.at(i) == from.at(i) : std::isnan(to.at(i)));
        }
      }
    });
  }
}

// A block's shared memory without opting in to more.
static_assert(sizeof(RmsGradMemory<BFloat16>) <= 49152 && sizeof(RmsGradMemory<double>) <= 49152);

}  // namespace
}  // namespace paperlab::kernels
