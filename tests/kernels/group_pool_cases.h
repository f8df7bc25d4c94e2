#pragma once
// Cases of group_pool for the tests of the GPU's kernel, on a GPU and warp by warp on the CPU.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/support/group_pool_exact.h"

namespace paperlab::kernels::group_pool_cases {

using test::PoolCase;
using test::PoolTensors;

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                    DType::kFloat64};
inline constexpr PoolKind kKinds[] = {PoolKind::kAttention, PoolKind::kMean, PoolKind::kMax};

inline std::vector<PoolCase> random_cases(std::uint64_t count) {
  std::vector<PoolCase> all;
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    all.push_back(test::random_pool_case(seed));
    all.back().dtype = kDTypes[seed % 4];
  }
  return all;
}

// Every number of lanes, whole packs and parts of them.
inline std::vector<PoolCase> width_cases() {
  std::vector<PoolCase> all;
  for (const DType dtype : kDTypes) {
    for (const std::int64_t width : {1, 7, 8, 16, 24, 64, 65, 128, 200, 255, 256}) {
      for (const PoolKind kind : kKinds) {
        all.push_back({.num_tokens = 11,
                       .num_queries = 11,
                       .head_dim = width,
                       .group = 5,
                       .kind = kind,
                       .dtype = dtype});
      }
    }
  }
  return all;
}

// One chunk of a warp and several, with growing maxima.
inline std::vector<PoolCase> group_cases(std::int64_t width) {
  std::vector<PoolCase> all;
  for (const DType dtype : kDTypes) {
    for (const std::int64_t group : {1, 2, 16, 33, 70}) {
      for (const PoolKind kind : kKinds) {
        all.push_back({.num_heads = 4,
                       .num_kv_heads = 2,
                       .num_tokens = 2 * group + 3,
                       .num_queries = 2 * group + 3,
                       .head_dim = width,
                       .group = group,
                       .first = 1,
                       .kind = kind,
                       .dtype = dtype,
                       .magnitude = 2.0});
      }
    }
  }
  return all;
}

// run(tensors) does both passes.
template <class Run>
void expect_right(const std::vector<PoolCase>& cases, Run run) {
  for (const PoolCase& of : cases) {
    PoolTensors tensors(of);
    ASSERT_TRUE(test::is_pooled_right(tensors, run));
  }
}

// Of all results, guards included.
inline std::vector<std::byte> bytes_of_results(const PoolTensors& tensors) {
  std::vector<std::byte> all;
  for (const auto& results : {tensors.results(), tensors.gradient_results()}) {
    for (const test::GuardedTensor* tensor : results) {
      const std::vector<std::byte> more = tensor->all_bytes();
      all.insert(all.end(), more.begin(), more.end());
    }
  }
  return all;
}

}  // namespace paperlab::kernels::group_pool_cases
