// The training strings against their definitions: words over {a, b} and the chain of thought.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/one_layer_fold/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/model.h"

namespace paperlab::regular_language {
namespace {

using Tokens = std::vector<std::uint8_t>;
using Labels = std::map<Tokens, int>;  // label of each string

TrainOptions even_pairs(int max_length) {
  TrainOptions options;
  options.max_length = max_length;
  return options;
}

TrainOptions parity_cot(int base_length) {
  TrainOptions options;
  options.task = Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  return options;
}

Tokens binary(std::uint32_t number, int length) {
  Tokens tokens;
  for (int l = 0; l < length; ++l) {
    tokens.push_back((number >> static_cast<unsigned>(l)) & 1U);
  }
  return tokens;
}

void add_even_pairs(int max_length, Labels& labels) {
  for (int length = 1; length <= max_length; ++length) {
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(length)); ++i) {
      const Tokens tokens = binary(i, length);
      int changes = 0;  // "ab" or "ba"
      for (std::size_t l = 1; l < tokens.size(); ++l) {
        changes += tokens[l] != tokens[l - 1] ? 1 : 0;
      }
      labels[tokens] = changes % 2 == 0 ? 1 : -1;
    }
  }
}

// Appends a if the token to compare equals the last one, else b.
void add_chains(int base_length, Labels& labels) {
  for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(base_length)); ++i) {
    Tokens tokens = binary(i, base_length);
    for (std::size_t k = 0; k + 1 < static_cast<std::size_t>(base_length); ++k) {
      const bool is_equal = tokens[k] == tokens.back();
      labels[tokens] = is_equal ? 1 : -1;
      tokens.push_back(is_equal ? 0 : 1);
    }
  }
}

void expect_labels(const std::vector<LabelledString>& strings, const Labels& labels) {
  EXPECT_EQ(strings.size(), labels.size());
  Labels seen;
  for (const LabelledString& string : strings) {
    EXPECT_TRUE(seen.emplace(string.tokens, string.label).second) << "a string comes twice";
  }
  EXPECT_EQ(seen, labels);
}

// Total weight of each length.
std::map<std::size_t, double> weights(const std::vector<LabelledString>& strings) {
  std::map<std::size_t, double> total;
  for (const LabelledString& string : strings) {
    total[string.tokens.size()] += string.weight;
  }
  return total;
}

TEST(DatasetTest, EvenPairsAreAllStringsLabelledByTheirChanges) {
  for (int length = 1; length <= 9; ++length) {
    Labels labels;
    add_even_pairs(length, labels);
    expect_labels(training_strings(even_pairs(length)), labels);
  }
  EXPECT_EQ(training_strings(even_pairs(6)).size(), 126U);
}

TEST(DatasetTest, ParityIsAllStringsLabelledByTheNumberOfB) {
  TrainOptions options = even_pairs(7);
  options.task = Task::kParity;
  options.method = Method::kStrings;
  for (const LabelledString& string : training_strings(options)) {
    const int count = std::accumulate(string.tokens.begin(), string.tokens.end(), 0);
    EXPECT_EQ(string.label, count % 2 == 0 ? 1 : -1);
  }
  EXPECT_EQ(training_strings(options).size(), 254U);
}

TEST(DatasetTest, ChainsAreTheTeacherForcedSteps) {
  for (int base_length = 2; base_length <= 8; ++base_length) {
    Labels labels;
    add_even_pairs(base_length - 1, labels);
    add_chains(base_length, labels);
    expect_labels(training_strings(parity_cot(base_length)), labels);
  }
  EXPECT_EQ(training_strings(parity_cot(4)).size(), 62U);
}

TEST(DatasetTest, TheFirstStepOfAChainIsEvenPairsOfThatLength) {
  TrainOptions options = parity_cot(5);
  options.regularizer_length = 0;
  Labels first;
  for (const LabelledString& string : training_strings(options)) {
    if (string.tokens.size() == 5) {
      first[string.tokens] = string.label;
    }
  }
  Labels all;
  add_even_pairs(5, all);
  std::erase_if(all, [](const auto& item) { return item.first.size() != 5; });
  EXPECT_EQ(first, all);
}

// The answer to the last step is the parity: the final string has 2 L0 - 1 tokens.
TEST(DatasetTest, TheLastAppendedTokenIsTheParity) {
  for (int base_length = 2; base_length <= 9; ++base_length) {
    const auto longest = static_cast<std::size_t>(2 * base_length - 2);
    int count = 0;
    for (const LabelledString& string : training_strings(parity_cot(base_length))) {
      if (string.tokens.size() == longest) {
        const int num_b =
            std::accumulate(string.tokens.begin(), string.tokens.begin() + base_length, 0);
        EXPECT_EQ(string.label, num_b % 2 == 0 ? 1 : -1);
        ++count;
      }
    }
    EXPECT_EQ(count, 1 << base_length);
  }
}

TEST(DatasetTest, EveryLengthWeighsOne) {
  for (const TrainOptions& options : {even_pairs(9), parity_cot(6), parity_cot(2)}) {
    const auto total = weights(training_strings(options));
    EXPECT_EQ(total.size(), static_cast<std::size_t>(options.max_length));
    for (const auto& [length, weight] : total) {
      EXPECT_EQ(weight, 1.0) << "length " << length;
    }
  }
}

TEST(DatasetTest, ARegularizerOfTheBaseLengthCountsThatLengthTwice) {
  TrainOptions options = parity_cot(4);
  options.regularizer_length = 4;
  const auto total = weights(training_strings(options));
  EXPECT_EQ(total.at(4), 2.0);
  EXPECT_EQ(total.at(5), 1.0);
  options.regularizer_length = 1;
  EXPECT_EQ(weights(training_strings(options)).count(2), 0U);
}

TEST(DatasetTest, UniformWeightsKeepTheTotal) {
  TrainOptions options = even_pairs(6);
  options.uniform_weights = true;
  for (const LabelledString& string : training_strings(options)) {
    EXPECT_DOUBLE_EQ(string.weight, 6.0 / 126.0);
  }
}

TEST(DatasetTest, PackedStringsAreTheTrainingStrings) {
  for (const TrainOptions& options : {even_pairs(7), parity_cot(5), parity_cot(7)}) {
    Labels unpacked;
    for (const kernels::PackedStrings& group : packed_strings(options)) {
      for (std::size_t n = 0; n < static_cast<std::size_t>(group.num_strings); ++n) {
        const auto positions = static_cast<std::size_t>(group.length - 1);
        Tokens tokens;
        for (std::size_t l = 0; l < positions; ++l) {
          tokens.push_back((group.tokens[n / 8 * positions + l] >> (n % 8)) & 1U);
        }
        tokens.push_back(static_cast<std::uint8_t>(group.query));
        unpacked[tokens] = ((group.negative[n / 8] >> (n % 8)) & 1U) != 0 ? -1 : 1;
      }
    }
    expect_labels(training_strings(options), unpacked);
  }
}

// Checks one chain group's strings and marks their base strings as seen.
void mark_chains(const kernels::AffineGroup& group, int base_length, std::vector<int>& seen) {
  const int step = group.length - base_length + 1;
  for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
    std::uint32_t string = 0;  // token l in bit l
    for (int l = 0; l < group.length; ++l) {
      string |= static_cast<std::uint32_t>(kernels::affine_token(group, l, i))
                << static_cast<unsigned>(l);
    }
    const auto token = [=](int l) { return (string >> static_cast<unsigned>(l)) & 1U; };
    for (int k = 1; k < step; ++k) {
      const auto appended = static_cast<int>(base_length - 1 + k);
      ASSERT_EQ(token(appended), token(k - 1) ^ token(appended - 1)) << "chain token " << k;
    }
    const bool is_equal = token(step - 1) == token(group.length - 1);
    ASSERT_EQ(kernels::affine_label(group, i), is_equal ? 1 : -1);
    ++seen[string & ((1U << static_cast<unsigned>(base_length)) - 1U)];
  }
}

TEST(DatasetTest, GroupsOfAChainAreFoldableAndHoldEveryBaseStringOnce) {
  for (const int base_length : {2, 3, 4, 5, 6, 9, 12, 14}) {
    std::map<int, std::vector<int>> seen;  // by step
    for (const kernels::AffineGroup& group : affine_groups(parity_cot(base_length))) {
      EXPECT_TRUE(kernels::is_foldable(group));
      if (group.length >= base_length) {
        auto& of_step = seen[group.length];
        of_step.resize(std::size_t{1} << static_cast<unsigned>(base_length));
        mark_chains(group, base_length, of_step);
      }
    }
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(base_length - 1));
    for (const auto& [length, counts] : seen) {
      EXPECT_TRUE(std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }))
          << "base_length " << base_length << ", length " << length;
    }
  }
}

TEST(DatasetTest, GroupsOfSixteenBaseTokensAreFoldable) {
  std::map<int, double> strings;
  for (const kernels::AffineGroup& group : affine_groups(parity_cot(16))) {
    EXPECT_TRUE(kernels::is_foldable(group));
    strings[group.length] += std::ldexp(1.0, group.num_bits);
  }
  EXPECT_EQ(strings.size(), 30U);
  for (int length = 16; length <= 30; ++length) {
    EXPECT_EQ(strings.at(length), 65536.0);
  }
}

std::string message_of(const TrainOptions& options) {
  try {
    training_strings(options);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

TEST(DatasetTest, OptionsOutOfRangeAreRefused) {
  EXPECT_EQ(message_of(even_pairs(0)), "training_strings: max_length must be in 1..20, got 0");
  EXPECT_EQ(message_of(even_pairs(21)), "training_strings: max_length must be in 1..20, got 21");
  TrainOptions options = parity_cot(4);
  for (const int base_length : {-3, 0, 1}) {
    options.base_length = base_length;
    EXPECT_NE(message_of(options).find("base_length"), std::string::npos) << base_length;
  }
  for (const int base_length : {5, 40, std::numeric_limits<int>::max()}) {
    options.base_length = base_length;
    EXPECT_NE(message_of(options).find("max_length"), std::string::npos) << base_length;
  }
  options = parity_cot(4);
  options.regularizer_length = 7;
  EXPECT_NE(message_of(options).find("regularizer_length"), std::string::npos);
}

}  // namespace
}  // namespace paperlab::regular_language
