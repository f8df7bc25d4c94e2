#pragma once
/// \file
/// Pseudo-random permutations without a table, so that any element is known at once.

#include <cstdint>

#include "paperlab/core/export.h"

namespace paperlab::data {

/// Returns element `i` of the permutation of 0..n-1 that (seed, stream) names; another pair names
/// another permutation. O(1) time and memory.
///
/// An unbalanced Feistel network with Philox as its round function permutes 0..2^b - 1, where
/// 2^b < 2 n; values of n and more are sent through it again until one is below n.
/// Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking).
/// \throws ValueError  unless 1 <= n <= 2^62 and i < n.
PAPERLAB_API std::uint64_t permuted(std::uint64_t seed, std::uint64_t stream, std::uint64_t n,
                                    std::uint64_t i);

}  // namespace paperlab::data
