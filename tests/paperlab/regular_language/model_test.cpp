#include "paperlab/regular_language/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"

namespace paperlab::regular_language {
namespace {

using Tokens = std::vector<std::uint8_t>;

Model random_model(int max_length) {
  const auto width = 2 * static_cast<std::uint64_t>(max_length);
  return {max_length, 2.0, philox_normals(1, 0, width), philox_normals(1, 1, width * width)};
}

// Compares the last token with the one at position target(L), from 0: where they are equal all
// attention goes to the first token and T = 1; else it goes elsewhere and T = -1.
Model comparing_model(int max_length, const std::function<int(int)>& target) {
  const auto width = 2 * static_cast<std::size_t>(max_length);
  Model model{max_length, 0.5, std::vector<double>(width, -1.0),
              std::vector<double>(width * width, 0.0)};
  model.u[0] = model.u[1] = 1.0;
  const auto logit = [&](int key, int key_token, int length, int query_token) -> double& {
    return model.w[static_cast<std::size_t>(2 * key + key_token) * width +
                   static_cast<std::size_t>(2 * (length - 1) + query_token)];
  };
  for (int length = 2; length <= max_length; ++length) {
    for (int q = 0; q < 2; ++q) {
      const int p = target(length);
      for (int s = 0; s < 2; ++s) {
        logit(0, s, length, q) = p == 0 ? (s == q ? 30.0 : -30.0) : 30.0;
      }
      if (p > 0) {
        logit(p, 1 - q, length, q) = 90.0;
      }
    }
  }
  return model;
}

// All strings of `length` tokens, row-major, and whether each has an odd number of b.
struct AllStrings {
  explicit AllStrings(int length) {
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(length)); ++i) {
      int count = 0;
      for (int l = 0; l < length; ++l) {
        tokens.push_back((i >> static_cast<unsigned>(l)) & 1U);
        count += tokens.back();
      }
      is_odd.push_back(count % 2);
    }
  }

  Tokens tokens;
  std::vector<int> is_odd;
};

TEST(ModelTest, AttentionIsTheSoftmaxOfTheLastTokensLogits) {
  const Model model = random_model(5);
  const Tokens tokens = {1, 0, 0, 1};
  const std::vector<double> phi = attention(model, tokens);
  std::vector<double> expected(4);
  for (std::size_t l = 0; l < 4; ++l) {
    expected[l] = (std::exp(model.w[(2 * l + tokens[l]) * 10 + 7] / 2.0));
  }
  const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
  ASSERT_EQ(phi.size(), 4U);
  for (std::size_t l = 0; l < 4; ++l) {
    EXPECT_NEAR(phi[l], expected[l] / sum, 1e-15);
  }
}

TEST(ModelTest, AttentionSumsToOneAndTheScoreIsItsMeanOfU) {
  const Model model = random_model(7);
  for (std::uint32_t i = 0; i < 128; ++i) {
    Tokens tokens;
    for (unsigned l = 0; l < 7; ++l) {
      tokens.push_back((i >> l) & 1U);
    }
    const std::vector<double> phi = attention(model, tokens);
    double t = 0.0;
    for (std::size_t l = 0; l < 7; ++l) {
      t += phi[l] * model.u[2 * l + tokens[l]];
    }
    EXPECT_NEAR(std::accumulate(phi.begin(), phi.end(), 0.0), 1.0, 1e-15);
    EXPECT_EQ(score(model, tokens), t);
  }
}

TEST(ModelTest, EqualLogitsGiveUniformAttention) {
  Model model = random_model(6);
  model.w.assign(model.w.size(), 3.0);
  for (const double phi : attention(model, Tokens{0, 1, 1, 0, 1, 0})) {
    EXPECT_DOUBLE_EQ(phi, 1.0 / 6.0);
  }
}

TEST(ModelTest, AStringOfOneTokenAttendsToItself) {
  const Model model = random_model(3);
  EXPECT_EQ(attention(model, Tokens{1}), std::vector<double>{1.0});
  EXPECT_EQ(score(model, Tokens{1}), model.u[1]);
}

TEST(ModelTest, HugeLogitsStayFinite) {
  Model model = random_model(2);
  model.w.assign(model.w.size(), -1e300);
  model.w[(0 + 1) * 4 + 2] = 1e300;  // key b at 1, query a at 2
  const std::vector<double> phi = attention(model, Tokens{1, 0});
  EXPECT_EQ(phi, (std::vector<double>{1.0, 0.0}));
}

TEST(ModelTest, TheScoreIsTheProductOfUAndTheFeatures) {
  const Model model = random_model(6);
  TrainOptions options;
  const auto strings = training_strings(options);
  const std::vector<double> z = features(model, strings);
  ASSERT_EQ(z.size(), strings.size() * 12);
  for (std::size_t n = 0; n < strings.size(); ++n) {
    const double t = std::inner_product(model.u.begin(), model.u.end(), z.data() + 12 * n, 0.0);
    EXPECT_NEAR(t, score(model, strings[n].tokens), 1e-14);
  }
}

TEST(ModelTest, TruncatedChainsOfAnExactComparisonGiveTheParity) {
  const Model model = comparing_model(12, [](int) { return 0; });
  for (int base_length = 2; base_length <= 12; ++base_length) {
    const AllStrings all(base_length);
    EXPECT_EQ(chain_of_thought(model, all.tokens, base_length, /*truncated=*/true), all.is_odd)
        << base_length;
  }
}

TEST(SlowModelTest, TruncatedChainsOfSixteenTokensGiveTheParity) {
  const Model model = comparing_model(16, [](int) { return 0; });
  const AllStrings all(16);
  EXPECT_EQ(chain_of_thought(model, all.tokens, 16, /*truncated=*/true), all.is_odd);
}

TEST(ModelTest, UntruncatedChainsOfAnExactComparisonGiveTheParity) {
  for (int base_length = 2; base_length <= 9; ++base_length) {
    const Model model = comparing_model(
        2 * base_length - 2, [=](int length) { return std::max(0, length - base_length); });
    const AllStrings all(base_length);
    EXPECT_EQ(chain_of_thought(model, all.tokens, base_length, /*truncated=*/false), all.is_odd)
        << base_length;
  }
}

// A tie appends b: at zero parameters every answer is b.
TEST(ModelTest, AScoreOfZeroAppendsB) {
  const Model model{4, 2.0, std::vector<double>(8, 0.0), std::vector<double>(64, 0.0)};
  EXPECT_EQ(chain_of_thought(model, Tokens{0, 0, 0, 1, 0, 1}, 3, true), (std::vector<int>{1, 1}));
}

TEST(ModelTest, ChainsDoNotDependOnThreads) {
  const Model model = random_model(12);
  const AllStrings all(12);  // several chunks
  const int before = get_num_threads();
  set_num_threads(1);
  const auto serial = chain_of_thought(model, all.tokens, 12, true);
  for (const int num_threads : {2, 3}) {
    set_num_threads(num_threads);
    EXPECT_EQ(chain_of_thought(model, all.tokens, 12, true), serial);
  }
  set_num_threads(before);
}

TEST(ModelTest, NoStringsGiveNoAnswers) {
  EXPECT_TRUE(chain_of_thought(random_model(4), {}, 4, true).empty());
  EXPECT_TRUE(features(random_model(4), {}).empty());
}

template <class F>
std::string message_of(F call) {
  try {
    call();
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelTest, StringsThatDoNotFitAreRefused) {
  const Model model = random_model(3);
  EXPECT_EQ(message_of([&] { attention(model, Tokens{}); }),
            "attention: tokens must hold 1..3, got 0");
  EXPECT_EQ(message_of([&] { attention(model, Tokens{0, 1, 0, 1}); }),
            "attention: tokens must hold 1..3, got 4");
  EXPECT_EQ(message_of([&] { score(model, Tokens{0, 2}); }),
            "attention: tokens of strings must be 0 or 1, got 2");
}

TEST(ModelTest, ChainsThatDoNotFitAreRefused) {
  const Model model = random_model(4);
  const auto chain = [&](const Tokens& tokens, int base_length, bool truncated) {
    return message_of([&] { chain_of_thought(model, tokens, base_length, truncated); });
  };
  EXPECT_EQ(chain({0}, 1, true), "chain_of_thought: strings must have at least 2 tokens, got 1");
  EXPECT_EQ(chain({0, 1, 0, 1, 0}, 5, true),
            "chain_of_thought: u and w must serve strings of 5 tokens, got max_length 4");
  EXPECT_EQ(chain({0, 1, 0, 1}, 4, false),
            "chain_of_thought: u and w must serve strings of 6 tokens, got max_length 4");
  EXPECT_EQ(chain({0, 1, 0}, 2, true), "chain_of_thought: strings must be [N, 2], got 3 tokens");
  EXPECT_EQ(chain({0, 7}, 2, true), "chain_of_thought: tokens of strings must be 0 or 1, got 7");
  EXPECT_NE(chain({}, std::numeric_limits<int>::max(), false).find("chain_of_thought: "),
            std::string::npos);
}

TEST(ModelTest, MalformedModelsAreRefused) {
  const auto message = [](const std::function<void(Model&)>& damage) {
    Model model = random_model(3);
    damage(model);
    return message_of([&] { chain_of_thought(model, Tokens{0, 1}, 2, true); });
  };
  EXPECT_EQ(message([](Model& m) { m.u.pop_back(); }),
            "chain_of_thought: u must be [2 * max_length], got 5 elements");
  EXPECT_EQ(message([](Model& m) { m.w.pop_back(); }),
            "chain_of_thought: w must be [6, 6], got 35 elements");
  EXPECT_EQ(message([](Model& m) { m.u[1] = std::nan(""); }),
            "chain_of_thought: u must be finite, got NaN or infinity");
  EXPECT_EQ(message([](Model& m) { m.w[1] = INFINITY; }),
            "chain_of_thought: w must be finite, got NaN or infinity");
  for (const double bad : {0.0, -1.0, std::nan(""), double{INFINITY}}) {
    EXPECT_NE(message([=](Model& m) {
                m.attention_scale = bad;
              }).find("chain_of_thought: attention_scale must be finite and > 0"),
              std::string::npos);
  }
  EXPECT_NE(message([](Model& m) { m = Model{}; }).find("u must be"), std::string::npos);
}

}  // namespace
}  // namespace paperlab::regular_language
