// Which keys and prefix entries a row sees, from the words of key_rule.h.
#include <algorithm>
#include <cstdint>

#include "tests/support/attention_exact.h"

namespace paperlab::test {
namespace {

using kernels::KeyRule;
using kernels::KeyRuleKind;

// Core entry c, by the exact partition.
bool sees_core(const KeyRule& rule, std::int64_t p, std::int64_t c, std::int64_t start,
               std::int64_t end) {
  const std::int64_t last = start + rule.kept + c * rule.group + rule.group - 1;
  return last < end && p - last >= rule.window;
}

// Whether the row sees the first core entry and the keys that it stands for.
bool is_truncated(const KeyRule& rule, std::int64_t p, std::int64_t start, std::int64_t end) {
  const std::int64_t least = rule.window + rule.group;
  const std::int64_t of_row = p + 1 - start - rule.kept;
  return rule.truncated && end - start - rule.kept >= least && of_row > rule.window &&
         of_row < least;
}

}  // namespace

bool sees_entry(const KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
                std::int64_t end) {
  switch (rule.kind) {
    case KeyRuleKind::kCoreContext: {
      const std::int64_t core = std::max<std::int64_t>(0, n - rule.kept);
      return sees_core(rule, p, core, start, end) ||
             (core == 0 && is_truncated(rule, p, start, end));
    }
    case KeyRuleKind::kSinks: {
      const std::int64_t key = start + n;
      const bool is_in_window = p - key < rule.window;
      return n < rule.num_sinks && key < end && !is_in_window;
    }
    default:
      return false;
  }
}

bool sees_key(const KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
              std::int64_t end) {
  if (n < start || n >= end) {
    return false;
  }
  switch (rule.kind) {
    case KeyRuleKind::kFull:
      return true;
    case KeyRuleKind::kDense:
      return n <= p;
    case KeyRuleKind::kWindow:
    case KeyRuleKind::kSinks:
      return n <= p && p - n < rule.window;
    case KeyRuleKind::kCoreContext:
      break;
  }
  if (n < start + rule.kept) {  // copies of it are in the prefix
    return n <= p && !sees_entry(rule, p, 0, start, end);
  }
  const std::int64_t from_first = n - start - rule.kept;
  const std::int64_t core = from_first / rule.group;
  const bool is_doubled = rule.overlap == 1 && from_first % rule.group == rule.group - 1 &&
                          !sees_core(rule, p, core + 1, start, end);
  return n <= p && (is_doubled || !sees_core(rule, p, core, start, end));
}

}  // namespace paperlab::test
