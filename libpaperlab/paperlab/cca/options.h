#pragma once
/// \file
/// What core-context-aware attention is: sizes, the kind of pooling, the partition of the keys.
///
/// Position i counts from 1, as in the paper. Query i sees core tokens 1..j(i), each of which
/// stands for a group of g tokens, and the raw keys behind them up to its own.
/// Source: CCA (Chen et al., "Core Context Aware Transformers for Long Context Language Modeling",
/// ICML 2025, arXiv:2412.12465).

#include <cstdint>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab::cca {

/// How the g tokens of a group become one core token.
enum class Pooling : std::uint8_t {
  kAttention,  ///< Their mean, weighted by the attention of the group's last query.
  kMean,       ///< Their mean.
  kMax,        ///< The maximum of each channel, of keys and of values.
};

/// Which keys a query sees.
enum class Boundary : std::uint8_t {
  kExact,  ///< Each token once: j(i) = max(0, floor((i - s) / g)), raw tokens from g j(i) + 1.
  kPaperEquation,     ///< As printed: where j(i) > 0 one raw token more, which a core token stands
                      ///< for.
  kTritonTruncation,  ///< As released for GPUs, whose division truncates: s < i < s + g also see
                      ///< core token 1. Needs s % g == 0.
};

/// What shares the weights of a pooling by attention.
enum class WeightsPer : std::uint8_t {
  kQueryHead,  ///< Nothing: H core tokens a group, as released.
  kKvHead,     ///< The query heads of a key head: G core tokens, weighted by their mean query.
};

/// The defaults are the paper's.
struct Options {
  std::int64_t group_size = 16;  ///< g
  std::int64_t window = 1024;    ///< s
  Pooling pooling = Pooling::kAttention;
  Boundary boundary = Boundary::kExact;
  WeightsPer weights_per = WeightsPer::kQueryHead;
  /// n, ours and not the paper's: the first n tokens stay raw and visible, and groups start after
  /// them, so that the rules above hold for i - n.
  std::int64_t keep_first = 0;

  bool operator==(const Options&) const = default;
};

/// What is wrong with options, as "group_size must be in 1..., got 0"; empty if nothing is.
PAPERLAB_API std::string problem_of(const Options& options);

/// \throws ValueError  "<function>: ..." with problem_of(): group_size < 1, window < 0,
///                     keep_first < 0, one of them above 2^60, a window that is no multiple of
///                     group_size with kTritonTruncation, or a value that no enumeration has.
PAPERLAB_API void validate(const char* function, const Options& options);

}  // namespace paperlab::cca
