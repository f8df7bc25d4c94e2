#pragma once
// Which keys a row sees: one rule for dense, window, core-context and sink attention, shared by
// every path on the CPU and on the GPU.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

enum class KeyRuleKind : std::uint8_t {
  kFull,         // every key, also later ones
  kDense,        // causal
  kWindow,       // the last `window` keys, the row's own included
  kCoreContext,  // the first `kept` prefix entries stand for keys 0 .. kept - 1, core entry c
                 // behind them for the g keys from kept + c g on; rows that are at least `window`
                 // keys past the last of the first g see the kept ones and every core entry whose
                 // keys lie as far back; raw keys follow the last entry seen
  kSinks,        // the last `window` keys; prefix entry n stands for key n, n < num_sinks, and is
                 // seen by rows whose window has left it behind
};

// What a row sees: prefix entries 0..prefix_end-1 and raw keys begin..end-1, counted from key 0.
struct VisibleKeys {
  std::int64_t prefix_end;
  std::int64_t begin;
  std::int64_t end;

  PAPERLAB_HD constexpr bool operator==(const VisibleKeys& other) const {
    return prefix_end == other.prefix_end && begin == other.begin && end == other.end;
  }
};

struct KeyRule {
  KeyRuleKind kind = KeyRuleKind::kDense;
  std::int64_t window = 1;     // kWindow, kSinks: >= 1; kCoreContext: >= 0
  std::int64_t group = 1;      // kCoreContext: >= 1
  std::int64_t num_sinks = 0;  // kSinks: >= 0
  // kCoreContext: >= 0
  std::int64_t kept = 0;
  // kCoreContext, two departures from the exact partition that are on record (kernels/attention/
  // README.md). 0 or 1: rows that see a core entry also see so many of its last keys.
  std::int64_t overlap = 0;
  // Rows with more than `window` keys that aren't kept, but fewer than window + group, see the
  // first core entry and the keys that it stands for; if the sequence makes it at all (window +
  // group such keys).
  bool truncated = false;
  // Keys before key 0 that are no longer there; >= 0. Positions and ranges count from the first of
  // them, so that key n stands at n + num_past.
  std::int64_t num_past = 0;

  PAPERLAB_HD static constexpr KeyRule full() { return of(KeyRuleKind::kFull, 1); }
  PAPERLAB_HD static constexpr KeyRule dense() { return of(KeyRuleKind::kDense, 1); }
  PAPERLAB_HD static constexpr KeyRule sliding(std::int64_t window) {
    return of(KeyRuleKind::kWindow, window);
  }
  PAPERLAB_HD static constexpr KeyRule core_context(std::int64_t group, std::int64_t window) {
    KeyRule rule = of(KeyRuleKind::kCoreContext, window);
    rule.group = group;
    return rule;
  }
  PAPERLAB_HD static constexpr KeyRule sinks(std::int64_t num_sinks, std::int64_t window) {
    KeyRule rule = of(KeyRuleKind::kSinks, window);
    rule.num_sinks = num_sinks;
    return rule;
  }

  // What a row at position p >= 0 sees of `length` keys that start at position 0, all still there:
  // j, c0 and, unless kFull, p. j and c0 never decrease with p.
  PAPERLAB_HD constexpr VisibleKeys at(std::int64_t p, std::int64_t length) const {
    const std::int64_t left = p + 1 > window ? p + 1 - window : 0;  // keys behind the window
    switch (kind) {
      case KeyRuleKind::kWindow:
        return {0, left, p + 1};
      case KeyRuleKind::kCoreContext:
        return core_entries(left - kept, length - kept, p + 1);
      case KeyRuleKind::kSinks: {
        const std::int64_t sinks = num_sinks < length ? num_sinks : length;
        return {left < sinks ? left : sinks, left, p + 1};
      }
      case KeyRuleKind::kFull:
      case KeyRuleKind::kDense:
        break;
    }
    return {0, 0, p + 1};
  }

  // What a row at position p (below num_past where queries outnumber keys) sees of the keys at
  // positions start..end-1. The rule counts from `start`; a prefix entry is seen only if all keys
  // that it stands for lie below `end`.
  PAPERLAB_HD constexpr VisibleKeys visible(std::int64_t p, std::int64_t start,
                                            std::int64_t end) const {
    if (end <= start || (kind != KeyRuleKind::kFull && p < start)) {
      return present(0, start, start);
    }
    if (kind == KeyRuleKind::kFull) {
      return present(0, start, end);
    }
    const VisibleKeys keys = at(p - start, end - start);
    const std::int64_t last = start + keys.end < end ? start + keys.end : end;
    return present(keys.prefix_end, start + keys.begin, last);
  }

 private:
  PAPERLAB_HD static constexpr KeyRule of(KeyRuleKind kind, std::int64_t window) {
    KeyRule rule;
    rule.kind = kind;
    rule.window = window;
    return rule;
  }

  // kCoreContext. behind: keys behind the window, kept ones aside (below 0: so many of the window's
  // are kept); length: all keys but the kept ones.
  PAPERLAB_HD constexpr VisibleKeys core_entries(std::int64_t behind, std::int64_t length,
                                                 std::int64_t end) const {
    const std::int64_t least = behind < length ? behind : length;
    if (least >= group) {
      const std::int64_t entries = least / group;
      return {kept + entries, kept + entries * group - overlap, end};
    }
    const bool sees_first = truncated && behind > 0 && length >= window + group;
    return sees_first ? VisibleKeys{kept + 1, kept, end} : VisibleKeys{0, 0, end};
  }

  // Positions first..last-1 as keys that are still there.
  PAPERLAB_HD constexpr VisibleKeys present(std::int64_t prefix_end, std::int64_t first,
                                            std::int64_t last) const {
    const std::int64_t end = last > num_past ? last - num_past : 0;
    const std::int64_t begin = first > num_past ? first - num_past : 0;
    return {prefix_end, begin < end ? begin : end, end};
  }
};

// The key of query t, to which num_past is to be added: rows are aligned at the bottom right.
PAPERLAB_HD constexpr std::int64_t key_position(std::int64_t t, std::int64_t num_queries,
                                                std::int64_t num_keys) {
  return t + num_keys - num_queries;
}

}  // namespace paperlab::kernels
