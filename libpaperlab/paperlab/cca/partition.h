#pragma once
/// \file
/// The partition of L tokens into core tokens and raw ones.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).

#include <algorithm>
#include <cstdint>

#include "paperlab/cca/options.h"

namespace paperlab::cca {

/// Complete groups of `length` tokens: floor((L - n) / g), at least 0.
constexpr std::int64_t num_groups(std::int64_t length, const Options& options) {
  return std::max<std::int64_t>(length - options.keep_first, 0) / options.group_size;
}

/// Core tokens that query i sees, j(i) = max(0, floor((i - n - s) / g)); i = 1, 2, ...
constexpr std::int64_t num_visible(std::int64_t i, const Options& options) {
  return num_groups(i - std::min(i, options.window), options);
}

/// Tokens before the first raw one that query i sees besides the kept ones: n + g j(i), or 0 where
/// j(i) = 0.
constexpr std::int64_t num_behind(std::int64_t i, const Options& options) {
  const std::int64_t visible = num_visible(i, options);
  return visible == 0 ? 0 : options.keep_first + visible * options.group_size;
}

}  // namespace paperlab::cca
