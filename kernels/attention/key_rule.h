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
  kCoreContext,  // prefix entry n stands for keys n g .. n g + g - 1 and is seen by rows that are
                 // at least `window` keys past the last of them; raw keys follow the last entry
                 // seen
  kSinks,        // the last `window` keys; prefix entry n stands for key n, n < num_sinks, and is
                 // seen by rows whose window has left it behind
};

// What a row sees: prefix entries 0..prefix_end-1 and raw keys begin..end-1.
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

  PAPERLAB_HD static constexpr KeyRule full() { return {KeyRuleKind::kFull, 1, 1, 0}; }
  PAPERLAB_HD static constexpr KeyRule dense() { return {KeyRuleKind::kDense, 1, 1, 0}; }
  PAPERLAB_HD static constexpr KeyRule sliding(std::int64_t window) {
    return {KeyRuleKind::kWindow, window, 1, 0};
  }
  PAPERLAB_HD static constexpr KeyRule core_context(std::int64_t group, std::int64_t window) {
    return {KeyRuleKind::kCoreContext, window, group, 0};
  }
  PAPERLAB_HD static constexpr KeyRule sinks(std::int64_t num_sinks, std::int64_t window) {
    return {KeyRuleKind::kSinks, window, 1, num_sinks};
  }

  // What a row at position p >= 0 sees when keys start at 0 and go on for ever: j, c0 and, unless
  // kFull, p. j and c0 never decrease with p.
  PAPERLAB_HD constexpr VisibleKeys at(std::int64_t p) const {
    const std::int64_t left = p + 1 > window ? p + 1 - window : 0;  // keys behind the window
    switch (kind) {
      case KeyRuleKind::kWindow:
        return {0, left, p + 1};
      case KeyRuleKind::kCoreContext:
        return {left / group, left / group * group, p + 1};
      case KeyRuleKind::kSinks:
        return {left < num_sinks ? left : num_sinks, left, p + 1};
      case KeyRuleKind::kFull:
      case KeyRuleKind::kDense:
        break;
    }
    return {0, 0, p + 1};
  }

  // What a row at key position p (below 0 where queries outnumber keys) sees of the keys
  // start..end-1. The rule counts from `start`; prefix entry n stands for keys from start + n group
  // on and is seen only if all of them lie below `end`.
  PAPERLAB_HD constexpr VisibleKeys visible(std::int64_t p, std::int64_t start,
                                            std::int64_t end) const {
    if (kind == KeyRuleKind::kFull) {
      return {0, start, end > start ? end : start};
    }
    if (p < start || end <= start) {
      return {0, start, start};
    }
    const VisibleKeys keys = at(p - start);
    const std::int64_t complete = (end - start) / group;
    const std::int64_t prefix_end = keys.prefix_end < complete ? keys.prefix_end : complete;
    const std::int64_t first =
        start + (kind == KeyRuleKind::kCoreContext ? prefix_end * group : keys.begin);
    const std::int64_t last = start + keys.end < end ? start + keys.end : end;
    return {prefix_end, first < last ? first : last, last};
  }
};

// The key position of query t: rows are aligned at the bottom right.
PAPERLAB_HD constexpr std::int64_t key_position(std::int64_t t, std::int64_t num_queries,
                                                std::int64_t num_keys) {
  return t + num_keys - num_queries;
}

}  // namespace paperlab::kernels
