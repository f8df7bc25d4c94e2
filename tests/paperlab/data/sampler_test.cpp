#include "paperlab/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/data/token_files.h"

namespace paperlab::data {
namespace {

using experiments::Scratch;

class SamplerTest : public testing::Test {
 protected:
  // Domains a, b, c, ... with so many tokens.
  std::vector<Domain> domains(const std::vector<std::size_t>& sizes) const {
    std::vector<Domain> result;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      const std::string name(1, static_cast<char>('a' + d));
      result.push_back({name, counting_tokens(scratch_, name, sizes[d])});
    }
    return result;
  }

  Sampler sampler(const std::vector<std::size_t>& sizes, std::vector<double> weights = {},
                  std::int64_t length = 4, std::uint64_t seed = 1) const {
    return {domains(sizes), {length, seed, false, std::move(weights)}};
  }

  Scratch scratch_;
};

TEST_F(SamplerTest, WindowsAreTheStrideOfTheLength) {
  // 4 tokens to read and one to predict: 5 tokens make one window, 9 make two.
  for (const auto& [tokens, windows] : std::vector<std::pair<std::size_t, std::int64_t>>{
           {5, 1}, {8, 1}, {9, 2}, {12, 2}, {13, 3}}) {
    const Sampler one = sampler({tokens});
    ASSERT_EQ(one.num_windows(), std::vector<std::int64_t>{windows});
    for (std::int64_t i = 0; i < windows; ++i) {
      EXPECT_EQ(one.window(0, i).begin, 4 * i);
    }
    PAPERLAB_EXPECT_THROW(one.window(0, windows), ValueError, "index below");
    PAPERLAB_EXPECT_THROW(one.window(1, 0), ValueError, "domain below 1");
  }
}

TEST_F(SamplerTest, EveryWindowIsSeenOnceBeforeAnyIsSeenTwice) {
  for (const std::size_t windows : {1U, 2U, 3U, 17U, 64U, 100U}) {
    Sampler one = sampler({4 * windows + 1});
    std::vector<std::vector<std::int64_t>> epochs;
    for (int epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::int64_t> begins(windows);
      for (std::int64_t& begin : begins) {
        begin = one.next(1)[0].begin;
      }
      EXPECT_EQ(std::set<std::int64_t>(begins.begin(), begins.end()).size(), windows);
      epochs.push_back(begins);
    }
    if (windows > 10) {
      EXPECT_NE(epochs[0], epochs[1]);
      EXPECT_NE(epochs[1], epochs[2]);
    }
  }
}

// Windows stay in their document and use each of its tokens that they can.
TEST_F(SamplerTest, WithinDocuments) {
  const std::vector<std::uint64_t> offsets{0, 5, 5, 9, 22, 26};
  Sampler one({{"a", counting_tokens(scratch_, "a", 26, offsets)}}, {4, 1, true, {}});
  ASSERT_EQ(one.num_windows(), std::vector<std::int64_t>{4});
  std::vector<std::int64_t> begins(4);
  for (std::size_t i = 0; i < 4; ++i) {
    begins[i] = one.window(0, static_cast<std::int64_t>(i)).begin;
  }
  EXPECT_EQ(begins, (std::vector<std::int64_t>{0, 9, 13, 17}));
  std::set<std::int64_t> drawn;
  for (const Window& window : one.next(4)) {
    drawn.insert(window.begin);
  }
  EXPECT_EQ(drawn, (std::set<std::int64_t>{0, 9, 13, 17}));
}

// Chi-square at 100,000 draws; the bound is the mean plus six standard deviations.
TEST_F(SamplerTest, DomainsFollowTheWeights) {
  const std::vector<double> weights{0.45, 0.15, 0, 0.12, 0.09, 0.07, 0.05, 0.04, 0.03, 0};
  Sampler many = sampler(std::vector<std::size_t>(10, 101), weights);
  constexpr std::int64_t kDraws = 100'000;
  many.next(kDraws);
  double chi_square = 0;
  for (std::size_t d = 0; d < weights.size(); ++d) {
    const auto count = static_cast<double>(many.counts()[d]);
    const double expected = weights[d] * kDraws;
    if (expected == 0) {
      EXPECT_EQ(count, 0);
    } else {
      chi_square += (count - expected) * (count - expected) / expected;
    }
  }
  EXPECT_LT(chi_square, 7 + 6 * std::sqrt(14.0));
  EXPECT_EQ(many.num_samples(), kDraws);
}

TEST_F(SamplerTest, WeightsAreDividedByTheirSum) {
  Sampler one = sampler({21, 21}, {0.25, 0.75});
  Sampler other = sampler({21, 21}, {3, 9});
  EXPECT_EQ(one.weights(), other.weights());
  EXPECT_TRUE(one.next(100) == other.next(100));
  // By default all windows are equally likely.
  EXPECT_EQ(sampler({41, 121, 3}).weights(), (std::vector<double>{0.25, 0.75, 0}));
}

// However samples are put into batches, whatever was drawn before.
TEST_F(SamplerTest, ASampleIsAFunctionOfItsNumber) {
  Sampler whole = sampler({101, 45, 7});
  const std::vector<Window> expected = whole.next(1000);
  Sampler parts = sampler({101, 45, 7});
  std::vector<Window> joined;
  for (std::int64_t size = 1; joined.size() < 1000; ++size) {
    for (const Window& window : parts.next(
             std::min<std::int64_t>(size, 1000 - static_cast<std::int64_t>(joined.size())))) {
      joined.push_back(window);
    }
  }
  EXPECT_TRUE(joined == expected);
  for (const std::int64_t at : {999, 0, 1, 500, 501, 3, 6, 20, 22, 100, 101, 333}) {
    parts.seek(at);
    EXPECT_EQ(parts.num_samples(), at);
    EXPECT_TRUE(parts.next(1)[0] == expected[static_cast<std::size_t>(at)]) << at;
  }
}

TEST_F(SamplerTest, SeekingFarIsTheSameForAnyNumberOfThreads) {
  Sampler drawn = sampler({101, 45, 7});
  drawn.next(300'001);
  for (const int threads : {1, 3}) {
    Sampler jumped = sampler({101, 45, 7});
    jumped.seek(300'001, ThreadPool(threads));
    EXPECT_EQ(jumped.counts(), drawn.counts());
    EXPECT_EQ(jumped.state(), drawn.state());
  }
}

TEST_F(SamplerTest, SeedsDiffer) {
  EXPECT_FALSE(sampler({101, 45}, {}, 4, 1).next(50) == sampler({101, 45}, {}, 4, 2).next(50));
}

TEST_F(SamplerTest, WeightsChangeFromTheNextSampleOn) {
  Sampler one = sampler({101, 45, 9}, {1, 1, 1});
  Sampler plain = sampler({101, 45, 9}, {1, 1, 1});
  one.next(37);
  plain.next(37);
  const std::vector<std::int64_t> before = one.counts();
  one.set_weights({0, 1, 0});
  for (const Window& window : one.next(60)) {
    EXPECT_EQ(window.domain, 1);
  }
  EXPECT_EQ(one.counts()[1], before[1] + 60);
  PAPERLAB_EXPECT_THROW(one.seek(36), ValueError, "a sample in 37..2^40");
  one.seek(37);
  EXPECT_EQ(one.counts(), before);
  one.set_weights({1, 1, 1});  // nothing was drawn by the others
  EXPECT_TRUE(one.next(100) == plain.next(100));
  one.set_weights({2, 2, 2});  // the same ones
  one.seek(37);
}

TEST_F(SamplerTest, ResumesExactlyAtAnySample) {
  const std::vector<Domain> sources = domains({101, 45, 9});
  Sampler first(sources, {4, 1, false, {3, 1, 1}});
  for (int step = 0; step < 60; ++step) {
    if (step % 7 == 3) {
      first.set_weights({1.0 / 3, 0.1 * step, 0.7});
    }
    Sampler second(sources, {4, 1});
    // Through text, as in a checkpoint.
    second.load_state(Json::parse(format_json(first.state())));
    EXPECT_EQ(second.state(), first.state());
    EXPECT_EQ(second.weights(), first.weights());
    const std::vector<Window> expected = first.next(5);
    EXPECT_TRUE(second.next(5) == expected);
    EXPECT_EQ(second.state(), first.state());
    second.seek(first.state()["changed"]["samples"]);
    EXPECT_EQ(second.counts(), first.state()["changed"]["counts"].get<std::vector<std::int64_t>>());
  }
}

TEST_F(SamplerTest, StatesOfOtherSamplersAreRefused) {
  Sampler one = sampler({101, 45}, {3, 1});
  one.next(10);
  const Json own = one.state();
  auto refused = [&](const char* pointer, const Json& value, const std::string& part) {
    Json state = own;
    state[Json::json_pointer(pointer)] = value;
    PAPERLAB_EXPECT_THROW(one.load_state(state), ValueError, part);
    EXPECT_EQ(one.state(), own);
  };
  refused("/seed", 2, "seed as the sampler's, 1, got 2");
  refused("/length", 5, "length as the sampler's");
  refused("/domains", {"a", "c"}, "domains as");
  refused("/windows", {25, 12}, "windows as");
  refused("/weights", {0.5, 0.6}, "add up to 1");
  refused("/weights", {1.5, -0.5}, "finite and >= 0");
  refused("/weights", {1}, "one for each of 2 domains");
  refused("/weights", "x", "is no state of a sampler");
  refused("/samples", 11, "counts that add up");
  refused("/samples", -1, "counts that add up");
  refused("/samples", 1e30, "counts that add up");
  refused("/counts", {5, 5, 0}, "counts that add up");
  refused("/counts", {11, -1}, "counts that add up");
  refused("/counts", {9.5, 0.5}, "counts that add up");
  refused("/changed/samples", 3, "counts that add up");
  refused("/changed", {{"samples", 11}, {"counts", {5, 6}}}, "a change of weights in the past");
  PAPERLAB_EXPECT_THROW(one.load_state(Json::array()), ValueError, "is no state of a sampler");
  PAPERLAB_EXPECT_THROW(one.load_state(Json::object()), ValueError, "is no state of a sampler");
}

TEST_F(SamplerTest, BadWeightsAreRefused) {
  Sampler one = sampler({101, 45, 4}, {1, 1, 0});
  const Json own = one.state();
  auto refused = [&](const std::vector<double>& weights, const std::string& part) {
    PAPERLAB_EXPECT_THROW(one.set_weights(weights), ValueError, part);
    EXPECT_EQ(one.state(), own);
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  refused({1, -0.5, 0}, "for domain b");
  refused({std::nan(""), 1, 0}, "finite and >= 0, got nan for domain a");
  refused({1, kInfinity, 0}, "got inf for domain b");
  refused({1e308, 1e308, 0}, "a finite sum > 0");
  refused({0, 0, 0}, "a finite sum > 0");
  refused({1, 1}, "one for each of 3 domains, got 2");
  refused({1, 1, 1}, "domain c has a positive weight and no window of 5 tokens");
}

TEST_F(SamplerTest, BadOptionsAreRefused) {
  PAPERLAB_EXPECT_THROW(sampler({}), ValueError, "1..65535 domains, got 0");
  PAPERLAB_EXPECT_THROW(sampler({10}, {}, 0), ValueError, "length in 1..2^40, got 0");
  PAPERLAB_EXPECT_THROW(sampler({4, 3}), ValueError, "a domain with a window of 5 tokens");
  PAPERLAB_EXPECT_THROW(Sampler({{"a", nullptr}}, {4}), ValueError, "a without");
  const auto tokens = counting_tokens(scratch_, "a", 10);
  PAPERLAB_EXPECT_THROW(Sampler({{"a", tokens}, {"a", tokens}}, {4}), ValueError, "a twice");
  Sampler one = sampler({10});
  PAPERLAB_EXPECT_THROW(one.next(0), ValueError, "batch_size in 1..");
  PAPERLAB_EXPECT_THROW(one.next(INT64_MAX), ValueError, "batch_size in 1..");
  PAPERLAB_EXPECT_THROW(one.seek(-1), ValueError, "a sample in 0..2^40");
  EXPECT_EQ(one.num_samples(), 0);
}

TEST_F(SamplerTest, FillCopiesTheWindows) {
  for (const std::int64_t length : {1, 4, 64, 100}) {
    Sampler two = sampler({5000, 3001}, {}, length);
    const std::vector<Window> windows = two.next(700);  // 70,000 tokens: several tasks
    const std::size_t columns = static_cast<std::size_t>(length) + 1;
    std::vector<std::int64_t> out(700 * columns, -1);
    two.fill(windows, out, ThreadPool(3));
    for (std::size_t row = 0; row < 700; ++row) {
      for (std::size_t t = 0; t < columns; ++t) {
        ASSERT_EQ(out[row * columns + t], windows[row].begin + static_cast<std::int64_t>(t));
      }
    }
  }
}

TEST_F(SamplerTest, FillRefusesWhatDoesNotFit) {
  const Sampler one = sampler({10});
  std::vector<std::int64_t> out(5);
  auto fill = [&](const std::vector<Window>& windows) { one.fill(windows, out); };
  fill({{0, 5}});
  EXPECT_EQ(out, (std::vector<std::int64_t>{5, 6, 7, 8, 9}));
  PAPERLAB_EXPECT_THROW(fill({}), ShapeError, "0 rows of 5, got 5 tokens");
  PAPERLAB_EXPECT_THROW(fill({{0, 0}, {0, 0}}), ShapeError, "2 rows of 5, got 5 tokens");
  PAPERLAB_EXPECT_THROW(fill({{0, 6}}), ValueError, "tokens of 0..10");
  PAPERLAB_EXPECT_THROW(fill({{0, -1}}), ValueError, "tokens of 0..10");
  PAPERLAB_EXPECT_THROW(fill({{1, 0}}), ValueError, "domains below 1, got 1");
}

}  // namespace
}  // namespace paperlab::data
