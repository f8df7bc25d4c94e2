#pragma once
/// \file
/// What core-context attention costs and its cache holds, by counting.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465); the counts are ours.

#include <cstdint>

#include "paperlab/cca/options.h"
#include "paperlab/core/export.h"

namespace paperlab::cca {

/// The heads of a model and what an element takes.
struct AttentionShape {
  std::int64_t heads = 1;      ///< H
  std::int64_t kv_heads = 0;   ///< G, a divisor of H; 0: H.
  std::int64_t head_dim = 64;  ///< D
  std::int64_t layers = 1;
  std::int64_t bytes_per_element = 2;
};

/// Of L tokens; pairs are those of one head.
struct Cost {
  std::int64_t core_pairs = 0;     ///< (query, core token): sum of j(i) over i = 1..L.
  std::int64_t local_pairs = 0;    ///< (query, raw token), kept ones included.
  std::int64_t pairs = 0;          ///< Both.
  std::int64_t full_pairs = 0;     ///< L (L + 1) / 2
  std::int64_t flops = 0;          ///< 4 D H layers pairs; pooling, 6 D H a token, left out.
  std::int64_t full_flops = 0;     ///< 4 D H layers full_pairs
  std::int64_t cache_vectors = 0;  ///< floor((L - n) / g) core tokens and L - g j(L) raw ones.
  /// 2 layers D bytes_per_element (core heads x core tokens + G x raw tokens); core heads are G for
  /// WeightsPer::kKvHead, else H.
  std::int64_t cache_bytes = 0;
  std::int64_t full_cache_bytes = 0;  ///< 2 layers D bytes_per_element G L
};

/// Of the exact partition, whatever options.boundary.
/// \throws ValueError  "cost: ..." naming the argument: options that validate() refuses,
///                     length < 0, another number below 1, one above 2^60, kv_heads that don't
///                     divide heads, or a count of 2^63 or more.
PAPERLAB_API Cost cost(std::int64_t length, const Options& options = {},
                       const AttentionShape& shape = {});

}  // namespace paperlab::cca
