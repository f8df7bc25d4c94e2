// key_rule.h, all small cases against enumeration from its words.
#include "kernels/attention/key_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/support/attention_cases.h"
#include "tests/support/attention_exact.h"

namespace paperlab::kernels {
namespace {

constexpr std::int64_t kMaxKeys = 12;

// The rules that differ for up to kMaxKeys keys, and some beyond.
std::vector<KeyRule> all_rules() {
  std::vector<KeyRule> rules = {KeyRule::full(), KeyRule::dense()};
  for (std::int64_t window = 0; window <= kMaxKeys + 2; ++window) {
    for (std::int64_t number = 0; number <= kMaxKeys + 1; ++number) {
      if (number >= 1) {
        rules.push_back(KeyRule::core_context(number, window));
      }
      if (window >= 1) {
        rules.push_back(KeyRule::sinks(number, window));
      }
    }
    if (window >= 1) {
      rules.push_back(KeyRule::sliding(window));
    }
  }
  return rules;
}

template <class F>
void for_each_range(F visit) {
  for (std::int64_t start = 0; start <= kMaxKeys; ++start) {
    for (std::int64_t end = 0; end <= kMaxKeys; ++end) {
      visit(start, end);
    }
  }
}

// The same as a list of entries and of keys, each asked for alone. The first entry or key that
// differs, or nothing.
testing::AssertionResult is_enumeration(const KeyRule& rule, std::int64_t p, std::int64_t start,
                                        std::int64_t end) {
  const VisibleKeys seen = rule.visible(p, start, end);
  const auto describe = [&](const char* what, std::int64_t n) {
    return testing::AssertionFailure()
           << what << " " << n << " of position " << p << ", keys " << start << ".." << end - 1
           << ", " << test::literal_of(test::AttentionCase{.rule = rule}) << ": sees "
           << seen.prefix_end << " entries and keys " << seen.begin << ".." << seen.end - 1;
  };
  for (std::int64_t n = 0; n <= kMaxKeys + 2; ++n) {
    if (test::sees_entry(rule, p, n, start, end) != (n < seen.prefix_end)) {
      return describe("entry", n);
    }
    if (test::sees_key(rule, p, n, start, end) != (n >= seen.begin && n < seen.end)) {
      return describe("key", n);
    }
  }
  return testing::AssertionSuccess();
}

TEST(KeyRuleTest, VisibleKeysAreThoseOfTheWords) {
  for (const KeyRule& rule : all_rules()) {
    for_each_range([&](std::int64_t start, std::int64_t end) {
      for (std::int64_t p = -kMaxKeys; p < kMaxKeys; ++p) {
        ASSERT_TRUE(is_enumeration(rule, p, start, end));
      }
    });
  }
}

TEST(KeyRuleTest, VisibleKeysAreNeverInvalid) {
  for (const KeyRule& rule : all_rules()) {
    for_each_range([&](std::int64_t start, std::int64_t end) {
      for (std::int64_t p = -kMaxKeys; p < kMaxKeys; ++p) {
        const VisibleKeys seen = rule.visible(p, start, end);
        ASSERT_GE(seen.prefix_end, 0);
        ASSERT_GE(seen.begin, std::min(start, end));
        ASSERT_GE(seen.end, seen.begin);
        ASSERT_LE(seen.end, std::max(start, end));
      }
    });
  }
}

TEST(KeyRuleTest, VisibleKeysNeverMoveBackAsThePositionGrows) {
  for (const KeyRule& rule : all_rules()) {
    for_each_range([&](std::int64_t start, std::int64_t end) {
      for (std::int64_t p = -kMaxKeys; p + 1 < kMaxKeys; ++p) {
        const VisibleKeys now = rule.visible(p, start, end);
        const VisibleKeys next = rule.visible(p + 1, start, end);
        ASSERT_LE(now.prefix_end, next.prefix_end);
        ASSERT_LE(now.begin, next.begin);
        ASSERT_LE(now.end, next.end);
      }
    });
  }
}

TEST(KeyRuleTest, KeysWithoutAnEndAreThoseOfARangeThatIsLongEnough) {
  for (const KeyRule& rule : all_rules()) {
    for (std::int64_t p = 0; p < kMaxKeys; ++p) {
      const VisibleKeys seen = rule.at(p);
      if (rule.kind == KeyRuleKind::kFull) {
        EXPECT_TRUE(seen == (VisibleKeys{0, 0, p + 1}));
        EXPECT_TRUE(rule.visible(p, 0, p + 1) == seen);
      } else {
        EXPECT_TRUE(rule.visible(p, 0, 2 * kMaxKeys) == seen);
      }
    }
  }
}

// A rule counts from the first key that takes part: left padding shifts everything.
TEST(KeyRuleTest, TheStartShiftsWhatIsSeen) {
  for (const KeyRule& rule : all_rules()) {
    for_each_range([&](std::int64_t start, std::int64_t end) {
      for (std::int64_t p = start; p < kMaxKeys && end > start; ++p) {
        const VisibleKeys seen = rule.visible(p, start, end);
        const VisibleKeys shifted = rule.visible(p - start, 0, end - start);
        ASSERT_EQ(seen.prefix_end, shifted.prefix_end);
        ASSERT_EQ(seen.begin, shifted.begin + start);
        ASSERT_EQ(seen.end, shifted.end + start);
      }
    });
  }
}

TEST(KeyRuleTest, TheLastQueryStandsAtTheLastKey) {
  for (std::int64_t queries = 1; queries <= kMaxKeys; ++queries) {
    for (std::int64_t keys = 0; keys <= kMaxKeys; ++keys) {
      EXPECT_EQ(key_position(queries - 1, queries, keys), keys - 1);
      EXPECT_EQ(key_position(0, queries, keys), keys - queries);
    }
  }
}

TEST(KeyRuleTest, IsKnownAtCompileTime) {
  static_assert(KeyRule::core_context(4, 2).visible(9, 0, 12) == VisibleKeys{2, 8, 10});
  static_assert(KeyRule::sinks(2, 3).visible(9, 0, 12) == VisibleKeys{2, 7, 10});
  static_assert(KeyRule::sliding(3).visible(9, 0, 9) == VisibleKeys{0, 7, 9});
  static_assert(KeyRule::dense().visible(-1, 0, 9) == VisibleKeys{0, 0, 0});
  static_assert(KeyRule::full().visible(-1, 2, 9) == VisibleKeys{0, 2, 9});
}

}  // namespace
}  // namespace paperlab::kernels
