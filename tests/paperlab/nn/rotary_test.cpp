#include "paperlab/nn/rotary.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab::nn {
namespace {

RopeConfig plain(std::int64_t rotary_dim, std::int64_t max_positions = 2048) {
  RopeConfig config;
  config.rotary_dim = rotary_dim;
  config.max_positions = max_positions;
  return config;
}

RopeConfig scaled(RopeScaling scaling, double factor, std::int64_t rotary_dim,
                  std::int64_t max_positions, double base = 10000.0) {
  RopeConfig config = plain(rotary_dim, max_positions);
  config.scaling = scaling;
  config.factor = factor;
  config.base = base;
  return config;
}

struct Golden {
  const char* name;
  RopeConfig config;
  std::int64_t seq_len;
  double attention_factor;
  std::vector<double> frequencies;  // of every (R/16)-th pair
};

// Of transformers 5.23, its functions of rope parameters run in float64.
std::vector<Golden> linear_and_dynamic() {
  using enum RopeScaling;
  return {
      {"linear, factor 2",
       scaled(kLinear, 2.0, 64, 2048),
       0,
       1.0,
       {0.5, 0.15811388300841897, 0.05, 0.015811388300841896, 0.005, 0.0015811388300841895, 0.0005,
        0.00015811388300841897}},
      {"linear, factor 8, a quarter of 64 lanes",
       scaled(kLinear, 8.0, 16, 2048, 500000.0),
       0,
       1.0,
       {0.125, 0.02424034309358572, 0.004700753866357992, 0.0009115830921521386,
        0.00017677669529663688, 3.428102195952591e-05, 6.647869871181236e-06,
        1.2891731721515574e-06}},
      {"dynamic, factor 4, short",
       scaled(kDynamic, 4.0, 64, 2048),
       100,
       1.0,
       {1.0, 0.31622776601683794, 0.1, 0.03162277660168379, 0.01, 0.003162277660168379, 0.001,
        0.00031622776601683794}},
      {"dynamic, factor 4, long",
       scaled(kDynamic, 4.0, 64, 2048),
       5000,
       1.0,
       {1.0, 0.24709473623331077, 0.06105580867420942, 0.015086568939865264, 0.0037278117728616667,
        0.0009211226667426841, 0.00022760456237730733, 5.6239889306118886e-05}},
      {"dynamic, factor 2, a quarter of 64 lanes",
       scaled(kDynamic, 2.0, 16, 512),
       2049,
       1.0,
       {1.0, 0.23946227078426802, 0.05734217912915809, 0.013731288425986457, 0.003288125507280454,
        0.0007873820005970506, 0.0001885482818376296, 4.515019972131094e-05}},
  };
}

std::vector<Golden> llama3() {
  RopeConfig of_3_1 = scaled(RopeScaling::kLlama3, 8.0, 128, 131072, 500000.0);
  of_3_1.original_max_positions = 8192;
  RopeConfig of_3_2 = of_3_1;
  of_3_2.factor = 32.0;
  of_3_2.rotary_dim = 64;
  RopeConfig without_original = scaled(RopeScaling::kLlama3, 4.0, 16, 2048);
  without_original.low_freq_factor = 1.5;
  without_original.high_freq_factor = 3.0;
  return {
      {"Llama 3.1",
       of_3_1,
       0,
       1.0,
       {1.0, 0.19392274474868576, 0.03760603093086393, 0.0072926647372171085, 0.0005248461609929547,
        3.428102195952591e-05, 6.647869871181236e-06, 1.2891731721515574e-06}},
      {"Llama 3.2",
       of_3_2,
       0,
       1.0,
       {1.0, 0.19392274474868576, 0.03760603093086393, 0.0072926647372171085,
        0.00042955679655936815, 8.570255489881478e-06, 1.661967467795309e-06,
        3.2229329303788936e-07}},
      {"no original positions",
       without_original,
       0,
       1.0,
       {1.0, 0.31622776601683794, 0.1, 0.03162277660168379, 0.01, 0.0007905694150420947, 0.00025,
        7.905694150420948e-05}},
  };
}

std::vector<Golden> yarn_of_large_models() {
  RopeConfig of_qwen = scaled(RopeScaling::kYarn, 4.0, 128, 131072, 1e6);
  of_qwen.original_max_positions = 32768;
  RopeConfig with_mscale = scaled(RopeScaling::kYarn, 32.0, 64, 131072);
  with_mscale.original_max_positions = 4096;
  with_mscale.mscale = 0.707;
  with_mscale.mscale_all_dim = 0.5;
  RopeConfig given = scaled(RopeScaling::kYarn, 8.0, 32, 32768, 150000.0);
  given.original_max_positions = 4096;
  given.attention_factor = 0.75;
  given.truncate = false;
  given.beta_fast = 24.0;
  given.beta_slow = 2.0;
  return {
      {"yarn, factor 4",
       of_qwen,
       0,
       1.138629436111989,
       {1.0, 0.17782794100389226, 0.03162277660168379, 0.005375321490790102, 0.0006029411764705882,
        4.445698525097307e-05, 7.905694150420949e-06, 1.4058533129758728e-06}},
      {"yarn, factor 32, mscale",
       with_mscale,
       0,
       1.0611450955428121,
       {1.0, 0.31622776601683794, 0.1, 0.02690976662739438, 0.005528846153846153,
        0.0008057726730236733, 3.125e-05, 9.882117688026186e-06}},
      {"yarn, given attention factor, not truncated, half of 64 lanes",
       given,
       0,
       0.75,
       {1.0, 0.2254180002028708, 0.050813274815461475, 0.006745067242529858, 0.0003227486121839514,
        7.275334672675824e-05, 1.6399913927211918e-05, 3.6968358009713204e-06}},
  };
}

std::vector<Golden> yarn_of_small_models() {
  RopeConfig one_mscale = scaled(RopeScaling::kYarn, 2.0, 16, 256);
  one_mscale.mscale = 1.0;
  RopeConfig zero_mscale = one_mscale;
  zero_mscale.mscale = 0.0;
  zero_mscale.mscale_all_dim = 1.0;
  RopeConfig low_ramp = scaled(RopeScaling::kYarn, 8.0, 16, 512);
  low_ramp.original_max_positions = 64;  // the ramp would begin below the first pair
  RopeConfig high_ramp = scaled(RopeScaling::kYarn, 4.0, 16, 262144);
  high_ramp.original_max_positions = 65536;  // and end beyond the last
  RopeConfig narrow = scaled(RopeScaling::kYarn, 8.0, 32, 32768);
  narrow.original_max_positions = 4096;
  narrow.beta_fast = narrow.beta_slow = 1.5;
  narrow.truncate = false;
  return {
      {"yarn, no original positions, one mscale",
       one_mscale,
       0,
       1.0693147180559945,
       {1.0, 0.2766992952647332, 0.07500000000000001, 0.019764235376052368, 0.005,
        0.0015811388300841895, 0.0005, 0.00015811388300841897}},
      {"yarn, zero as one mscale",
       zero_mscale,
       0,
       1.0693147180559945,
       {1.0, 0.2766992952647332, 0.07500000000000001, 0.019764235376052368, 0.005,
        0.0015811388300841895, 0.0005, 0.00015811388300841897}},
      {"yarn, factor below 1",
       scaled(RopeScaling::kYarn, 0.5, 16, 256),
       0,
       1.0,
       {1.0, 0.3952847075210474, 0.15000000000000002, 0.05533985905294664, 0.02,
        0.006324555320336758, 0.002, 0.0006324555320336759}},
      {"yarn, ramp from the first pair",
       low_ramp,
       0,
       1.2079441541679836,
       {1.0, 0.2239946675952602, 0.04166666666666667, 0.003952847075210474, 0.00125,
        0.00039528470752104737, 0.000125, 3.952847075210474e-05}},
      {"yarn, ramp beyond the last pair",
       high_ramp,
       0,
       1.138629436111989,
       {1.0, 0.31622776601683794, 0.1, 0.03162277660168379, 0.01, 0.003162277660168379,
        0.0008125000000000001, 0.0001976423537605237}},
      {"yarn, ramp without width",
       narrow,
       0,
       1.2079441541679836,
       {1.0, 0.31622776601683794, 0.1, 0.03162277660168379, 0.01, 0.003162277660168379, 0.000125,
        3.952847075210474e-05}},
  };
}

// A power has an error of ln(base) roundings of its exponent on either side, and a few of its own;
// where two frequencies are mixed, the share's error counts up to `factor` times.
double relative_bound(const RopeConfig& config) {
  const bool mixes = config.scaling == RopeScaling::kLlama3 || config.scaling == RopeScaling::kYarn;
  return 0x1p-53 * (2.0 * std::log(config.base) + 16.0) * (mixes ? 1.0 + 4.0 * config.factor : 1.0);
}

void expect_golden(const Golden& golden) {
  SCOPED_TRACE(golden.name);
  const Rotary rotary(golden.config);
  EXPECT_NEAR(rotary.attention_factor(), golden.attention_factor, 4 * 0x1p-52);
  const std::vector<double> got = rotary.inverse_frequencies(golden.seq_len);
  ASSERT_EQ(static_cast<std::int64_t>(got.size()), golden.config.rotary_dim / 2);
  ASSERT_EQ(golden.frequencies.size(), 8U);
  for (std::size_t i = 0; i < 8; ++i) {
    const double exact = golden.frequencies[i];
    EXPECT_NEAR(got[i * (got.size() / 8)], exact, relative_bound(golden.config) * exact) << i;
  }
}

TEST(RotaryTest, FrequenciesAreThoseOfTransformers) {
  for (const auto& family :
       {linear_and_dynamic(), llama3(), yarn_of_large_models(), yarn_of_small_models()}) {
    for (const Golden& golden : family) {
      expect_golden(golden);
    }
  }
}

TEST(RotaryTest, FrequenciesWithoutScalingArePowersOfTheBase) {
  const std::vector<double> got = Rotary(plain(20)).inverse_frequencies();
  ASSERT_EQ(got.size(), 10U);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double exact = std::exp(-static_cast<double>(i) / 10.0 * std::log(10000.0));
    EXPECT_NEAR(got[i], exact, relative_bound(plain(20)) * exact);
  }
}

TEST(RotaryTest, DynamicFrequenciesAreAFunctionOfTheCallAlone) {
  const Rotary rotary(scaled(RopeScaling::kDynamic, 4.0, 16, 64));
  const std::vector<double> before = rotary.inverse_frequencies(64);
  EXPECT_NE(rotary.inverse_frequencies(65), before);
  EXPECT_EQ(rotary.inverse_frequencies(1), before);
  EXPECT_EQ(rotary.inverse_frequencies(), before);
}

// Rows of positions from the frequencies, in float64, rounded once.
template <class T>
void expect_rows(const Rotary& rotary, const RotaryTable& table,
                 const std::vector<std::int64_t>& positions, std::int64_t seq_len) {
  const std::vector<double> frequencies = rotary.inverse_frequencies(seq_len);
  const at::Tensor cos = table.cos.contiguous();
  const at::Tensor sin = table.sin.contiguous();
  ASSERT_EQ(cos.numel(), static_cast<std::int64_t>(positions.size() * frequencies.size()));
  std::size_t at = 0;
  for (const std::int64_t position : positions) {
    for (const double f : frequencies) {
      const double angle = static_cast<double>(position) * f;
      EXPECT_EQ(cos.const_data_ptr<T>()[at],
                static_cast<T>(std::cos(angle) * rotary.attention_factor()));
      EXPECT_EQ(sin.const_data_ptr<T>()[at],
                static_cast<T>(std::sin(angle) * rotary.attention_factor()));
      ++at;
    }
  }
}

std::vector<std::int64_t> from(std::int64_t start, std::int64_t length) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(length));
  std::iota(positions.begin(), positions.end(), start);
  return positions;
}

TEST(RotaryTest, RangesAreRoundedOnceWhereverTheyLie) {
  for (const RopeConfig& config : {plain(6), scaled(RopeScaling::kYarn, 4.0, 8, 100),
                                   scaled(RopeScaling::kDynamic, 2.0, 6, 90), plain(0)}) {
    const Rotary rotary(config);
    // Kept tables that grow and are not left behind; beyond those that are kept.
    for (const auto& [start, length] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 3},
                                                            {5, 0},
                                                            {70, 21},
                                                            {2, 700},
                                                            {10, 4},
                                                            {131070, 2},
                                                            {131070, 5},
                                                            {Rotary::kMaxPosition - 1, 2}}) {
      const RotaryTable table = rotary.range(start, length, at::kFloat);
      EXPECT_EQ(table.cos.sizes(), at::IntArrayRef({1, length, config.rotary_dim / 2}));
      EXPECT_TRUE(table.cos.is_contiguous() && table.sin.is_contiguous());
      expect_rows<float>(rotary, table, from(start, length), start + length);
      expect_rows<double>(rotary, rotary.range(start, length, at::kDouble), from(start, length),
                          start + length);
      EXPECT_EQ(rotary.range(start, length, at::kBFloat16).sin.scalar_type(), at::kFloat);
    }
  }
}

TEST(RotaryTest, PositionsMayBeAnyAndOfEachRow) {
  const std::vector<std::vector<std::int64_t>> all = {
      {0, 0, 1, 0, 1, 2}, {3, 4, 5, 6, 7, 8}, {9, 2, 2, 0, 131072, 7}, {5, 4, 3, 2, 1, 0}};
  for (const RopeConfig& config : {plain(10), scaled(RopeScaling::kDynamic, 2.0, 10, 6)}) {
    const Rotary rotary(config);
    for (const std::vector<std::int64_t>& positions : all) {
      const std::int64_t seq_len = *std::max_element(positions.begin(), positions.end()) + 1;
      for (const std::int64_t batch : {1, 2}) {
        const at::Tensor tensor = at::tensor(positions).view({batch, -1});
        const RotaryTable table = rotary.at(tensor, at::kFloat);
        EXPECT_EQ(table.cos.sizes(), at::IntArrayRef({batch, 6 / batch, 5}));
        expect_rows<float>(rotary, table, positions, seq_len);
        expect_rows<double>(rotary, rotary.at(tensor.t().contiguous().t(), at::kDouble), positions,
                            seq_len);
      }
    }
    EXPECT_EQ(rotary.at(at::tensor(all[0]).view({1, 6}).narrow(1, 0, 0), at::kFloat).cos.sizes(),
              at::IntArrayRef({1, 0, 5}));
  }
}

TEST(RotaryTest, ALengthThatIsGivenGoesBeforeThePositions) {
  const Rotary rotary(scaled(RopeScaling::kDynamic, 2.0, 10, 32));
  expect_rows<float>(rotary, rotary.range(3, 2, at::kFloat, 40), {3, 4}, 40);
  expect_rows<float>(rotary, rotary.at(at::tensor({7, 5}, at::kLong).view({1, 2}), at::kFloat, 50),
                     {7, 5}, 50);
}

TEST(RotaryTest, AKeptTableIsNotComputedAgainAndItsViewsLiveOn) {
  const Rotary rotary(plain(8));
  const RotaryTable before = rotary.range(0, 4, at::kFloat);
  EXPECT_EQ(rotary.range(0, 9, at::kFloat).cos.const_data_ptr(), before.cos.const_data_ptr());
  const at::Tensor copy = before.cos.clone();
  const RotaryTable grown = rotary.range(0, 5000, at::kFloat);
  EXPECT_NE(grown.cos.const_data_ptr(), before.cos.const_data_ptr());
  EXPECT_TRUE(at::equal(before.cos, copy) && at::equal(grown.cos.narrow(1, 0, 4), copy));
}

TEST(RotaryTest, TablesMadeInInferenceModeServeTraining) {
  const Rotary rotary(plain(8));
  const at::Tensor positions = at::tensor({2, 2}, at::kLong).view({1, 2});
  const c10::InferenceMode guard;
  EXPECT_FALSE(rotary.range(0, 4, at::kFloat).cos.is_inference());
  EXPECT_FALSE(rotary.at(positions, at::kFloat).sin.is_inference());
}

TEST(RotaryTest, ThreadsShareOneRotaryAndBitsDoNotDependOnTheirNumber) {
  const Rotary rotary(plain(8));
  std::vector<RotaryTable> tables(4);
  std::vector<std::thread> threads;
  threads.reserve(tables.size());
  for (std::size_t i = 0; i < tables.size(); ++i) {
    threads.emplace_back([&rotary, &tables, i] {
      for (std::int64_t length = 1; length < 3000; length += 100) {
        tables[i] = rotary.range(static_cast<std::int64_t>(i), length, at::kFloat);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Rotary alone(plain(8));
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const RotaryTable table = alone.range(static_cast<std::int64_t>(i), 2901, at::kFloat);
    EXPECT_TRUE(at::equal(tables[i].cos, table.cos) && at::equal(tables[i].sin, table.sin));
  }
  at::set_num_threads(before);
}

template <class E, class F>
void expect_refused(const std::string& part, const F& call) {
  try {
    call();
    ADD_FAILURE() << "not refused: " << part;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

void expect_config_refused(const std::string& part, RopeConfig config, const auto& change) {
  change(config);
  expect_refused<ValueError>(part, [&] { const Rotary rotary(config); });
}

TEST(RotaryTest, WrongConfigurationsAreRefused) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const RopeConfig none = plain(8);
  expect_config_refused("rotary_dim", none, [](RopeConfig& c) { c.rotary_dim = 7; });
  expect_config_refused("rotary_dim", none, [](RopeConfig& c) { c.rotary_dim = -2; });
  expect_config_refused("base", none, [](RopeConfig& c) { c.base = 0.0; });
  expect_config_refused("base", none, [&](RopeConfig& c) { c.base = nan; });
  const RopeConfig linear = scaled(RopeScaling::kLinear, 2.0, 8, 64);
  expect_config_refused("factor", linear, [](RopeConfig& c) { c.factor = 0.0; });
  expect_config_refused("factor", linear, [](RopeConfig& c) { c.factor = 1e-310; });
  const RopeConfig dynamic = scaled(RopeScaling::kDynamic, 2.0, 8, 64);
  expect_config_refused("max_positions", dynamic, [](RopeConfig& c) { c.max_positions = 0; });
  expect_config_refused("rotary_dim", dynamic, [](RopeConfig& c) { c.rotary_dim = 2; });
  const RopeConfig llama = scaled(RopeScaling::kLlama3, 2.0, 8, 64);
  expect_config_refused("high_freq_factor", llama, [](RopeConfig& c) { c.high_freq_factor = 1.0; });
  expect_config_refused("low_freq_factor", llama, [](RopeConfig& c) { c.low_freq_factor = -1.0; });
  expect_config_refused("original_max", llama, [](RopeConfig& c) { c.max_positions = 0; });
  const RopeConfig yarn = scaled(RopeScaling::kYarn, 2.0, 8, 64);
  expect_config_refused("base", yarn, [](RopeConfig& c) { c.base = 1.0; });
  expect_config_refused("beta_fast", yarn, [](RopeConfig& c) { c.beta_fast = 0.0; });
  expect_config_refused("attention_factor", yarn, [&](RopeConfig& c) { c.attention_factor = nan; });
  expect_config_refused("mscale", yarn, [&](RopeConfig& c) { c.mscale = nan; });
}

TEST(RotaryTest, WrongPositionsAreRefused) {
  const Rotary rotary(plain(8));
  const std::int64_t most = Rotary::kMaxPosition;
  const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  const auto range = [&](std::int64_t start, std::int64_t length, std::int64_t seq_len) {
    return [&rotary, start, length, seq_len] { rotary.range(start, length, at::kFloat, seq_len); };
  };
  expect_refused<ValueError>("positions", range(-1, 2, 0));
  expect_refused<ValueError>("positions", range(largest, 1, 0));
  expect_refused<ValueError>("length", range(0, -1, 0));
  expect_refused<ValueError>("length", range(most, 2, 0));
  expect_refused<ValueError>("length", range(1, largest, 0));
  expect_refused<ValueError>("seq_len", range(0, 1, -1));
  expect_refused<ValueError>("seq_len", range(0, 1, largest));
  expect_refused<ValueError>("seq_len", [&] { rotary.inverse_frequencies(-1); });
  expect_refused<DTypeError>("dtype", [&] { rotary.range(0, 1, at::kHalf); });
  const auto at = [&](const at::Tensor& positions, at::ScalarType dtype) {
    return [&rotary, positions, dtype] { rotary.at(positions, dtype); };
  };
  const at::Tensor two = at::arange(2, at::kLong);
  expect_refused<ShapeError>("positions", at(two, at::kFloat));
  expect_refused<ShapeError>("positions", at({}, at::kFloat));
  expect_refused<DTypeError>("positions", at(two.view({1, 2}).to(at::kInt), at::kFloat));
  expect_refused<DTypeError>("dtype", at(two.view({1, 2}), at::kLong));
  expect_refused<ValueError>("positions", at(two.view({1, 2}) - 1, at::kFloat));
  expect_refused<ValueError>("positions", at(two.view({1, 2}) + most, at::kFloat));
}

TEST(RotaryTest, AStretchThatOverflowsIsRefused) {
  const Rotary rotary(scaled(RopeScaling::kDynamic, 1e300, 4, 64));
  expect_refused<ValueError>("base", [&] { rotary.range(0, 1000, at::kFloat); });
}

}  // namespace
}  // namespace paperlab::nn
