// The GPU's depth_aggregate on the CPU: its arithmetic of places one by one, and its blocks against
// the textbook.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "tests/kernels/depth_aggregate_emulation.h"

namespace paperlab::kernels::depth_test {
namespace {

// --- places
// ---------------------------------------------------------------------------------------

TEST(DepthBlockTest, ABlocksPacksBelongToAsManyTokensAsAreStaged) {
  for (std::int64_t packs = 1; packs <= 600; ++packs) {
    std::int64_t most = 0;
    for (std::int64_t first = 0; first < packs; ++first) {
      most = std::max(most, (first + depth::kSumThreads - 1) / packs + 1);
    }
    const int tokens = depth::tokens_of_packs(packs);
    ASSERT_EQ(tokens, most) << packs;
    ASSERT_GE(depth::sources_of_pass<float>(tokens), depth::kSourcesAtOnce<float>);
    ASSERT_GE(depth::sources_of_pass<double>(tokens), depth::kSourcesAtOnce<double>);
    ASSERT_LE(depth::sources_of_pass<float>(tokens) * tokens, depth::kWeightsInMemory<float>);
  }
}

TEST(DepthBlockTest, RunsHaveEveryPackOfATokenOnce) {
  for (std::int64_t packs = 1; packs <= 1300; ++packs) {
    const depth::GradientShape shape = depth::gradient_shape(packs);
    ASSERT_EQ(shape.tokens_of_block() * shape.runs * shape.lanes, depth::kSumThreads);
    ASSERT_TRUE(shape.runs == 1 || shape.lanes == kWarp);
    std::vector<int> count(static_cast<std::size_t>(shape.steps * shape.runs * shape.lanes));
    for (int step = 0; step < shape.steps; ++step) {
      for (int run = 0; run < shape.runs; ++run) {
        for (int lane = 0; lane < shape.lanes; ++lane) {
          ++count.at(static_cast<std::size_t>(depth::pack_of(shape, step, run, lane)));
        }
      }
    }
    ASSERT_TRUE(std::all_of(count.begin(), count.end(), [](int n) { return n == 1; })) << packs;
    ASSERT_GE(static_cast<std::int64_t>(count.size()), packs);
    // No run is without work, and an eighth at most of the warps of wide tokens.
    ASSERT_LT(static_cast<std::int64_t>(count.size()) - packs,
              std::int64_t{shape.runs} * shape.lanes);
    ASSERT_GE(depth::sources_of_launch<double>(shape), depth::kPairs);
    ASSERT_LE(depth::sources_of_launch<float>(shape) * shape.runs_of_block(),
              depth::kWeightsInMemory<float>);
  }
  EXPECT_EQ(depth::gradient_shape(320).runs, 2);  // 2560 columns of 16 bits: 10 warps' packs
  EXPECT_EQ(depth::gradient_shape(512).runs, 8);  // 4096 of them
  EXPECT_EQ(depth::gradient_shape(128).runs, 4);  // 1024
  EXPECT_EQ(depth::gradient_shape(3).lanes, 4);
}

TEST(DepthBlockTest, QuadsCoverATileOnceAndItsBanks) {
  for (const bool is_along_terms : {true, false}) {
    std::set<std::pair<int, int>> places;
    for (int i = 0; i < depth::kQuadsOfThread; ++i) {
      for (int thread = 0; thread < depth::kProductThreads; ++thread) {
        const depth::QuadPlace place = depth::quad_place(thread, i, is_along_terms);
        for (int e = 0; e < depth::kQuad; ++e) {
          const int row = place.row + (is_along_terms ? 0 : e);
          const int term = place.term + (is_along_terms ? e : 0);
          ASSERT_TRUE(row < depth::kTileSize && term < depth::kTileTerms);
          places.insert({row, term});
        }
      }
      // Eight threads that store vectors at once, or a warp its numbers: no bank more than twice.
      for (int first = 0; first < depth::kProductThreads; first += is_along_terms ? 8 : kWarp) {
        std::vector<int> banks(32);
        for (int t = 0; t < (is_along_terms ? 8 : kWarp); ++t) {
          const depth::QuadPlace place = depth::quad_place(first + t, i, is_along_terms);
          ++banks[static_cast<std::size_t>((place.row * depth::kTileStride + place.term) % 32)];
        }
        ASSERT_LE(*std::max_element(banks.begin(), banks.end()), is_along_terms ? 1 : 2);
      }
    }
    EXPECT_EQ(places.size(), static_cast<std::size_t>(depth::kTileSize * depth::kTileTerms));
  }
}

template <class Tile>
void expect_every_sum_once() {
  std::set<std::pair<int, int>> places;
  for (int thread = 0; thread < depth::kProductThreads; ++thread) {
    for (int i = 0; i < depth::kSumsOfThread; ++i) {
      places.insert({Tile::row_of(thread, i), Tile::column_of(thread, i)});
    }
  }
  EXPECT_EQ(places.size(), static_cast<std::size_t>(depth::kTileSize * depth::kTileSize));
  EXPECT_EQ(*places.rbegin(), std::pair(depth::kTileSize - 1, depth::kTileSize - 1));
}

TEST(DepthBlockTest, ThreadsHaveEverySumOfATileOnce) {
  expect_every_sum_once<depth::PlainTile<float>>();
  expect_every_sum_once<depth::TensorTile>();
}

TEST(DepthBlockTest, FragmentsHaveEveryElementOnceAndFreeBanks) {
  std::set<std::pair<int, int>> left;
  std::set<std::pair<int, int>> right;
  std::set<std::pair<int, int>> sums;
  for (int i = 0; i < 4; ++i) {
    std::set<int> banks;
    for (int lane = 0; lane < kWarp; ++lane) {
      left.insert({depth::tensor_left_row(lane, i), depth::tensor_left_term(lane, i)});
      sums.insert({depth::tensor_sum_row(lane, i), depth::tensor_sum_column(lane, i)});
      right.insert({depth::tensor_right_term(lane, i % 2), depth::tensor_right_column(lane)});
      banks.insert((depth::tensor_left_row(lane, i) * depth::kTileStride +
                    depth::tensor_left_term(lane, i)) %
                   32);
    }
    EXPECT_EQ(banks.size(), 32U);
  }
  EXPECT_EQ(left.size(), 128U);
  EXPECT_EQ(right.size(), 64U);
  EXPECT_EQ(sums.size(), 128U);
  // As the manual draws them: lane 13 is in group 3, second of its four.
  EXPECT_EQ(std::pair(depth::tensor_left_row(13, 1), depth::tensor_left_term(13, 2)),
            std::pair(11, 5));
  EXPECT_EQ(std::pair(depth::tensor_right_term(13, 1), depth::tensor_right_column(13)),
            std::pair(5, 3));
  EXPECT_EQ(std::pair(depth::tensor_sum_row(13, 2), depth::tensor_sum_column(13, 3)),
            std::pair(11, 3));
}

TEST(DepthBlockTest, NumbersAreSumsOfTwoOfElevenBits) {
  for (int i = 0; i < 20000; ++i) {
    const auto x = static_cast<float>(
        std::ldexp(philox_normal(5, 0, static_cast<std::uint64_t>(i)), i % 40 - 20));
    depth::SplitNumbers<1> parts{{x}, {0.0F}};
    depth::split(parts);
    ASSERT_LE(std::fabs(double{x} - parts.high[0]), 0x1p-11 * std::fabs(x));
    ASSERT_LE(std::fabs(double{x} - parts.high[0] - parts.low[0]), 0x1p-22 * std::fabs(x));
    const float half = to_number(to_element<Float16>(std::ldexp(x, 20 - i % 40)));
    ASSERT_EQ(depth::to_tf32(half), half);
    const float bfloat = to_number(to_element<BFloat16>(x));
    ASSERT_EQ(depth::to_tf32(bfloat), bfloat);
  }
  EXPECT_TRUE(std::isnan(depth::to_tf32(std::nanf(""))));
  EXPECT_EQ(depth::to_tf32(HUGE_VALF), HUGE_VALF);
}

TEST(DepthBlockTest, SplitsOfTokensAreFewAndCoverThem) {
  for (const std::int64_t tokens : {0, 1, 511, 512, 513, 8192, 8193, 65536, 1000003}) {
    const std::int64_t split = depth::tokens_of_split(tokens);
    EXPECT_EQ(split % depth::kTileTerms, 0);
    EXPECT_LE(num_blocks(tokens, split), 16);
  }
}

// --- sums
// -----------------------------------------------------------------------------------------

TEST(DepthBlockTest, TheSumAndItsGradientsAreWithinTheBound) {
  for_gpu_cases(gpu_sum_shapes(), [](Case& of) {
    Case reversed = of;
    expect_right_sum(emulated(), of, of.shape.n % of.shape.j);
    expect_right_sum(emulated(true), reversed, of.shape.n % of.shape.j);
    EXPECT_TRUE(same_results(of, reversed)) << name(of);
  });
}

TEST(DepthBlockTest, StaticWeights) {
  for_gpu_cases(gpu_static_shapes(), [](Case& of) { expect_right_static_weights(emulated(), of); });
}

// A gradient that is absent is zeros as a stream's, and not wanted as a source's.
TEST(DepthBlockTest, AbsentGradients) {
  for (const DType dtype : kGpuDTypes) {
    for (const unsigned absent : {1U, 13U, 63U}) {
      Case zeros(dtype, {6, 136, 5, absent == 63U ? 6 : 4, 0});
      for (std::size_t source = 0; source < 5; ++source) {
        zeros.grad_sources[source] =
            Numbers::random(dtype, zeros.grad_sources[source].count(), 300 + source, 1.0);
      }
      for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
        if ((absent >> way & 1U) != 0) {
          zeros.grad_out[way].fill(0.0);
        }
      }
      zeros.point();
      Case left_out = zeros;
      for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
        if ((absent >> way & 1U) != 0) {
          left_out.grad_out_at[way] = nullptr;
        }
      }
      const Numbers untouched = left_out.grad_sources[3];
      left_out.grad_source_at[3] = nullptr;
      EmulatedForms forms(false);
      forms.sum_backward(zeros.sum(), zeros.sum_gradients(2));
      forms.sum_backward(left_out.sum(), left_out.sum_gradients(2));
      EXPECT_TRUE(left_out.grad_sources[3] == untouched);
      left_out.grad_sources[3] = zeros.grad_sources[3];
      EXPECT_TRUE(same_results(zeros, left_out));
      Case only_weights = zeros;
      only_weights.grad_weights = Numbers(zeros.statistics, zeros.grad_weights.count());
      DepthAggregateGradients none = only_weights.sum_gradients();
      none.grad_sources = nullptr;
      forms.sum_backward(only_weights.sum(), none);
      EXPECT_TRUE(same_results(zeros, only_weights));
      Case only_sources = left_out;
      only_sources.grad_sources[4] = Numbers(dtype, only_sources.grad_sources[4].count());
      only_sources.point();
      DepthAggregateGradients no_weights = only_sources.sum_gradients(0);
      no_weights.grad_weights = nullptr;
      no_weights.num_added = 4;
      forms.sum_backward(only_sources.sum(), no_weights);
      EXPECT_TRUE(only_sources.grad_sources[4] == zeros.grad_sources[4]);
    }
  }
}

// Weights [C, N, J], and tensors at addresses that are no multiples of 16 bytes.
TEST(DepthBlockTest, OddPlaces) {
  for (const DType dtype : kGpuDTypes) {
    const std::int64_t size = bytes_of(dtype);
    Case of(dtype, {7, 64, 3, 4, 0});
    Case odd = of;
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      odd.weights.set(i / 3 % 4 * 21 + i / 12 * 3 + i % 3, of.weights.at(i));
    }
    const auto moved = [&](Numbers& numbers) {
      Numbers longer(dtype, numbers.count() + 1);
      std::memcpy(static_cast<std::byte*>(longer.data()) + size, numbers.data(),
                  static_cast<std::size_t>(numbers.count() * size));
      numbers = std::move(longer);
      return static_cast<std::byte*>(numbers.data()) + size;
    };
    odd.source_at[1] = moved(odd.sources[1]);
    odd.out_at[3] = moved(odd.out[3]);
    odd.grad_out_at[0] = moved(odd.grad_out[0]);
    odd.grad_source_at[2] = moved(odd.grad_sources[2]);
    DepthAggregate sum = odd.sum();
    sum.token_stride = 3;
    sum.way_stride = 21;
    EmulatedForms forms(false);
    forms.sum(of.sum(), of.out_at.data());
    forms.sum_backward(of.sum(), of.sum_gradients());
    forms.sum(sum, odd.out_at.data());
    forms.sum_backward(sum, odd.sum_gradients());
    for (std::int64_t i = 0; i < std::int64_t{7} * 64; ++i) {
      EXPECT_EQ(odd.out[3].at(i + 1), of.out[3].at(i));
      EXPECT_EQ(odd.grad_sources[2].at(i + 1), of.grad_sources[2].at(i));
    }
    EXPECT_TRUE(odd.out[0] == of.out[0] && odd.grad_sources[0] == of.grad_sources[0]);
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(odd.grad_weights.at(i / 3 % 4 * 21 + i / 12 * 3 + i % 3), of.grad_weights.at(i));
    }
  }
}

// --- the generator
// --------------------------------------------------------------------------------

TEST(DepthBlockTest, TheGeneratorAndItsGradientsAreWithinTheBound) {
  for_gpu_cases(gpu_generator_shapes(), [](Case& of) {
    of.gelu = of.shape.n % 2 == 0 ? GeluForm::kTanh : GeluForm::kExact;
    expect_right_generator(emulated(), of);
  });
}

// Several splits of the tokens and parts of the rows.
TEST(DepthBlockTest, ParametersOfManyTokens) {
  for (const DType dtype : kGpuDTypes) {
    Case of(dtype, {1100, 8, 2, 1, 4});
    expect_right_generator(emulated(), of);
    Case reversed(dtype, {1100, 8, 2, 1, 4});
    expect_right_generator(emulated(true), reversed);
    EXPECT_TRUE(same_results(of, reversed));
  }
}

TEST(DepthBlockTest, AStepIsItsParts) {
  for_gpu_cases(gpu_step_shapes(), [](Case& of) { expect_step_is_its_parts(emulated(), of); });
}

TEST(DepthBlockTest, MatricesMayLieTurnedOver) {
  for_gpu_cases(gpu_turned_shapes(),
                [](Case& of) { expect_same_with_turned_matrices(emulated(), of); });
}

TEST(DepthBlockTest, WhatIsNotWantedIsNotNeeded) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case all(dtype, {9, 40, 3, 2, 12});
    Case some = all;
    all.grad_weights = Numbers::random(all.statistics, all.grad_weights.count(), 5, 1.0);
    some.grad_weights = all.grad_weights;
    EmulatedForms forms(false);
    forms.weights(all.generator(), all.generated());
    forms.weights_backward(all.generator(), all.generator_gradients());
    Case only_weights = some;
    forms.weights(only_weights.generator(), {only_weights.weights.data()});
    EXPECT_TRUE(only_weights.weights == all.weights);
    forms.weights(some.generator(), some.generated());
    ConnectionWeightsGradients gradients = some.generator_gradients();
    gradients.grad_w1 = nullptr;
    gradients.grad_bias = nullptr;
    forms.weights_backward(some.generator(), gradients);
    EXPECT_TRUE(some.grad_w2 == all.grad_w2);
  }
}

TEST(DepthBlockTest, OneHotWeightsGiveTheNewestStateItself) {
  for (const DType dtype : kGpuDTypes) {
    Case of(dtype, {9, 48, 5, 4, 20});
    of.w2.fill(0.0);
    for (std::int64_t i = 0; i < 20; ++i) {
      of.bias.set(i, i % 5 == 4 ? 1.0 : 0.0);
    }
    EmulatedForms forms(false);
    forms.step(of.step(), of.generated(), of.out_at.data());
    for (const Numbers& stream : of.out) {
      EXPECT_TRUE(stream == of.sources.back());
    }
  }
}

TEST(DepthBlockTest, NanStaysWhereItIs) {
  for (const DType dtype : kGpuDTypes) {
    Case of(dtype, {5, 40, 4, 2, 8});
    EmulatedForms forms(false);
    of.sources[1].set(87, kNaN);  // token 2
    forms.step(of.step(), of.generated(), of.out_at.data());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87);
      }
    }
    of.sources[3].set(160, kNaN);  // the newest: all weights of its token
    forms.step(of.step(), of.generated(), of.out_at.data());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87 || i >= 160);
      }
    }
  }
}

// A token's bits do not depend on the tokens beside it.
TEST(DepthBlockTest, TokensDoNotDependOnEachOther) {
  for (const DType dtype : kGpuDTypes) {
    Case many(dtype, {70, 24, 3, 2, 5});
    Case one = many;
    EmulatedForms forms(false);
    forms.step(many.step(), many.generated(), many.out_at.data());
    DepthStep last = one.step();
    const std::int64_t skipped = std::int64_t{69} * 24 * bytes_of(dtype);
    for (const void*& source : one.source_at) {
      source = static_cast<const std::byte*>(source) + skipped;
    }
    last.generator.num_tokens = last.aggregate.num_tokens = 1;
    last.generator.x = one.source_at.back();
    forms.step(last, one.generated(), one.out_at.data());
    for (std::size_t way = 0; way < 2; ++way) {
      for (std::int64_t i = 0; i < 24; ++i) {
        EXPECT_EQ(one.out[way].at(i), many.out[way].at(std::int64_t{69} * 24 + i));
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels::depth_test
