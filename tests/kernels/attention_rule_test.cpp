// key_rule.h, all small cases against enumeration from its words.
#include "kernels/attention/key_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "paperlab/core/rng.h"
#include "tests/support/attention_cases.h"
#include "tests/support/attention_exact.h"

namespace paperlab::kernels {
namespace {

constexpr std::int64_t kMaxKeys = 12;

// Kept keys with and without each departure from the partition.
void add_departures(KeyRule rule, std::vector<KeyRule>& rules) {
  for (const std::int64_t kept : {0, 1, 3}) {
    for (const std::int64_t overlap : {0, 1}) {
      for (const bool truncated : {false, true}) {
        rule.kept = kept;
        rule.overlap = overlap;
        rule.truncated = truncated;
        if (kept + overlap > 0 || truncated) {
          rules.push_back(rule);
        }
      }
    }
  }
}

// The rules that differ for up to kMaxKeys keys, and some beyond.
std::vector<KeyRule> all_rules() {
  std::vector<KeyRule> rules = {KeyRule::full(), KeyRule::dense()};
  for (std::int64_t window = 0; window <= kMaxKeys + 2; ++window) {
    for (std::int64_t number = 0; number <= kMaxKeys + 1; ++number) {
      if (number >= 1) {
        rules.push_back(KeyRule::core_context(number, window));
        if (window % 3 == 0 && window <= 6 && number <= 4) {
          add_departures(rules.back(), rules);
        }
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
      const VisibleKeys seen = rule.at(p, 4 * kMaxKeys);
      if (rule.kind == KeyRuleKind::kFull) {
        EXPECT_TRUE(seen == (VisibleKeys{0, 0, p + 1}));
        EXPECT_TRUE(rule.visible(p, 0, p + 1) == seen);
      } else {
        EXPECT_TRUE(rule.visible(p, 0, 4 * kMaxKeys) == seen);
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

// A core-context sequence of `length` keys, of which the first `start` are not its own.
struct Sequence {
  std::int64_t start;
  std::int64_t length;
  KeyRule rule;
};

// Small numbers and such that have no common divisor, windows below a group, kept keys beyond the
// end.
Sequence random_sequence(std::uint64_t number) {
  std::uint64_t next = 0;
  const auto between = [&](std::int64_t from, std::int64_t to) {
    const double width = static_cast<double>(to - from + 1);
    return from + static_cast<std::int64_t>(philox_uniform(17, number, next++) * width);
  };
  Sequence of{number % 3 == 0 ? between(0, 20) : 0, between(0, 150),
              KeyRule::core_context(between(1, 20), between(0, number % 2 == 0 ? 12 : 90))};
  of.rule.kept = number % 4 == 0 ? between(0, 30) : 0;
  return of;
}

// How often a row has each key of the sequence: raw, as a kept copy and in a core entry.
std::vector<std::int64_t> times_seen(const Sequence& of, std::int64_t p) {
  const KeyRule& rule = of.rule;
  const VisibleKeys seen = rule.visible(p, of.start, of.start + of.length);
  std::vector<std::int64_t> times(static_cast<std::size_t>(of.start + of.length), 0);
  for (std::int64_t n = 0; n < seen.prefix_end; ++n) {
    const bool is_kept = n < rule.kept;
    const std::int64_t first = of.start + (is_kept ? n : rule.kept + (n - rule.kept) * rule.group);
    for (std::int64_t i = 0; i < (is_kept ? 1 : rule.group); ++i) {
      ++times.at(static_cast<std::size_t>(first + i));
    }
  }
  for (std::int64_t n = seen.begin; n < seen.end; ++n) {
    ++times.at(static_cast<std::size_t>(n));
  }
  return times;
}

constexpr std::uint64_t kNumSequences = 4000;

TEST(CoreContextRuleTest, EveryEarlierKeyIsRepresentedOnceAndNoLaterOne) {
  for (std::uint64_t number = 0; number < kNumSequences; ++number) {
    const Sequence of = random_sequence(number);
    for (std::int64_t p = of.start; p < of.start + of.length; ++p) {
      std::vector<std::int64_t> wanted(static_cast<std::size_t>(of.start + of.length), 0);
      std::fill(wanted.begin() + of.start, wanted.begin() + p + 1, 1);
      ASSERT_EQ(times_seen(of, p), wanted) << "sequence " << number << ", position " << p;
    }
  }
}

// j = max(0, floor((i - n - s) / g)) for the row with i keys, and raw keys from n + g j on.
TEST(CoreContextRuleTest, VisibleKeysAreThoseOfTheFormula) {
  for (std::uint64_t number = 0; number < kNumSequences; ++number) {
    const Sequence of = random_sequence(number);
    const KeyRule& rule = of.rule;
    for (std::int64_t i = 1; i <= of.length; ++i) {
      const std::int64_t behind = i - rule.kept - rule.window;
      const std::int64_t j = behind < 0 ? 0 : behind / rule.group;
      const VisibleKeys wanted = {j == 0 ? 0 : rule.kept + j,
                                  of.start + (j == 0 ? 0 : rule.kept + rule.group * j),
                                  of.start + i};
      ASSERT_TRUE(rule.visible(of.start + i - 1, of.start, of.start + of.length) == wanted)
          << "sequence " << number << ", key " << i;
    }
  }
}

// The departures double keys, where they are on record for it, and miss none.
TEST(CoreContextRuleTest, DeparturesDoubleKeysInNamedRowsAlone) {
  for (std::uint64_t number = 0; number < kNumSequences; ++number) {
    Sequence of = random_sequence(number);
    const KeyRule exact = of.rule;
    const std::int64_t end = of.start + of.length;
    for (std::int64_t p = of.start; p < end; ++p) {
      const std::int64_t keys = p + 1 - of.start - exact.kept;
      const VisibleKeys seen = exact.visible(p, of.start, end);
      of.rule = exact;
      of.rule.overlap = 1;
      std::vector<std::int64_t> doubled = times_seen({of.start, of.length, exact}, p);
      if (keys >= exact.window + exact.group) {
        ++doubled.at(static_cast<std::size_t>(seen.begin - 1));
      }
      ASSERT_EQ(times_seen(of, p), doubled) << "sequence " << number << ", position " << p;
      of.rule = exact;
      of.rule.truncated = true;
      const bool is_named = keys > exact.window && keys < exact.window + exact.group &&
                            of.length - exact.kept >= exact.window + exact.group;
      VisibleKeys wanted = seen;
      wanted.prefix_end = is_named ? exact.kept + 1 : seen.prefix_end;
      wanted.begin = is_named ? of.start + exact.kept : seen.begin;
      ASSERT_TRUE(of.rule.visible(p, of.start, end) == wanted)
          << "sequence " << number << ", position " << p;
    }
  }
}

// A chunk of a longer sequence, whose earliest keys are gone, sees what the whole does.
TEST(KeyRuleTest, WhatIsThereOfAChunkIsSeenAsInTheWhole) {
  for (KeyRule rule : all_rules()) {
    for_each_range([&](std::int64_t start, std::int64_t end) {
      for (std::int64_t p = -1; p < kMaxKeys && rule.kind != KeyRuleKind::kFull; ++p) {
        rule.num_past = 0;
        const VisibleKeys whole = rule.visible(p, start, end);
        for (rule.num_past = 1; rule.num_past <= kMaxKeys; rule.num_past += 3) {
          const VisibleKeys chunk = rule.visible(p, start, end);
          const auto there = [&](std::int64_t n) {
            return std::max(n - rule.num_past, std::int64_t{0});
          };
          ASSERT_EQ(chunk.prefix_end, whole.prefix_end);
          ASSERT_EQ(chunk.begin, std::min(there(whole.begin), there(whole.end)));
          ASSERT_EQ(chunk.end, there(whole.end));
        }
      }
    });
  }
}

// Rows of a chunk over the keys from `num_past` on, as a cache with few raw keys holds them.
TEST(CoreContextRuleTest, ChunksNeedNoKeyThatACacheHasDropped) {
  for (std::uint64_t number = 0; number < kNumSequences; ++number) {
    Sequence of = random_sequence(number);
    const std::int64_t end = of.start + of.length;
    for (std::int64_t first = of.start; first < end; first += 7) {
      KeyRule rule = of.rule;
      rule.num_past = 0;
      const std::int64_t dropped = rule.visible(first, of.start, end).begin;
      for (std::int64_t p = first; p < end; ++p) {
        rule.num_past = 0;
        const VisibleKeys whole = rule.visible(p, of.start, end);
        rule.num_past = dropped;
        const VisibleKeys chunk = rule.visible(p, of.start, end);
        ASSERT_TRUE(chunk ==
                    (VisibleKeys{whole.prefix_end, whole.begin - dropped, whole.end - dropped}));
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
