#include "paperlab/cca/cache.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "paperlab/cca/attention.h"
#include "paperlab/core/error.h"
#include "tests/support/limited_memory.h"

namespace paperlab::cca {
namespace {

Options small(std::int64_t keep_first = 0) {
  Options options;
  options.group_size = 4;
  options.window = 6;
  options.keep_first = keep_first;
  return options;
}

struct Inputs {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;

  Inputs part(std::int64_t first, std::int64_t count) const {
    return {query.narrow(2, first, count), key.narrow(2, first, count),
            value.narrow(2, first, count)};
  }
  Inputs row(std::int64_t b) const {
    return {query.narrow(0, b, 1), key.narrow(0, b, 1), value.narrow(0, b, 1)};
  }
};

Inputs random_inputs(std::int64_t batch, std::int64_t length) {
  return {at::randn({batch, 4, length, 8}, at::kDouble),
          at::randn({batch, 2, length, 8}, at::kDouble),
          at::randn({batch, 2, length, 8}, at::kDouble)};
}

at::Tensor prefill(KvCache& cache, const Inputs& x, const at::Tensor& key_start = {}) {
  return cache.prefill(x.query, x.key, x.value, key_start);
}

// Row b begins at token starts[b]; what stands before it is NaN and changes nothing.
TEST(CcaCacheTest, RowsBeginWhereTheirPaddingEnds) {
  const std::vector<std::int64_t> starts = {0, 3, 17, 40};
  for (const std::int64_t keep_first : {0, 3}) {
    const Inputs all = random_inputs(4, 60);
    const at::Tensor key_start = at::tensor(starts, at::kLong);
    for (std::int64_t b = 0; b < 4; ++b) {
      for (const at::Tensor* x : {&all.query, &all.key, &all.value}) {
        x->select(0, b)
            .narrow(1, 0, starts[static_cast<std::size_t>(b)])
            .fill_(std::numeric_limits<double>::quiet_NaN());
      }
    }
    KvCache cache(small(keep_first));
    std::vector<at::Tensor> outs;
    std::int64_t first = 0;
    for (const std::int64_t count : {5, 1, 1, 20, 1, 1, 1, 1, 29}) {
      outs.push_back(prefill(cache, all.part(first, count), first < 6 ? key_start : at::Tensor()));
      first += count;
    }
    const at::Tensor out = at::cat(outs, 2);
    for (std::int64_t b = 0; b < 4; ++b) {
      const std::int64_t start = starts[static_cast<std::size_t>(b)];
      const Inputs row = all.row(b).part(start, 60 - start);
      const at::Tensor wanted = attention(row.query, row.key, row.value, small(keep_first)).out;
      EXPECT_TRUE(out.narrow(0, b, 1).narrow(2, start, 60 - start).allclose(wanted));
      EXPECT_TRUE(out.narrow(0, b, 1).narrow(2, 0, start).eq(0).all().item<bool>());
    }
    const at::Tensor other = at::zeros({4}, at::kLong);
    EXPECT_THROW(prefill(cache, all.part(0, 1), other), c10::ValueError);
    EXPECT_THROW(prefill(cache, all.part(0, 1), other.to(at::kInt)), c10::TypeError);
    EXPECT_EQ(cache.length(), 60);
  }
}

// After each call the cache goes back to before it and takes other tokens.
TEST(CcaCacheTest, TheLastCallCanBeUndone) {
  for (const bool is_revertible : {false, true}) {
    for (const std::int64_t keep_first : {0, 3}) {
      const Inputs all = random_inputs(2, 220);
      const Inputs wrong = random_inputs(2, 220);
      const at::Tensor wanted = attention(all.query, all.key, all.value, small(keep_first)).out;
      KvCache cache(small(keep_first), is_revertible);
      std::int64_t first = 0;
      for (std::int64_t call = 0; first < 220; ++call) {
        const std::int64_t longest = is_revertible && call % 3 == 2 ? 90 : 1;
        const std::int64_t count = std::min(longest, 220 - first);
        prefill(cache, wrong.part(first, count));
        cache.truncate(first);
        EXPECT_EQ(cache.length(), first);
        const at::Tensor out = prefill(cache, all.part(first, count));
        ASSERT_TRUE(out.allclose(wanted.narrow(2, first, count))) << first;
        first += count;
      }
    }
  }
}

// Calls that stay in the cache's memory, that need more, and that are longer than it; each of them
// without memory at every place where it asks for some.
TEST(CcaCacheTest, ACallWithoutMemoryChangesNothing) {
  const Inputs all = random_inputs(2, 400);
  const at::Tensor wanted = attention(all.query, all.key, all.value, small()).out;
  for (const bool is_long_before : {false, true}) {
    for (const std::int64_t count : {1, 40, 90}) {
      const std::int64_t before = is_long_before ? 100 : 30;
      bool is_refused = true;
      for (std::int64_t allowed = 0; is_refused; ++allowed) {
        KvCache cache(small(), /*is_revertible=*/true);
        prefill(cache, all.part(0, before));
        prefill(cache, all.part(before, before));
        const Inputs next = all.part(2 * before, count);
        refuse_allocation(allowed, kDeviceMemoryError);
        try {
          prefill(cache, next);
          is_refused = false;
        } catch (const c10::OutOfMemoryError&) {
          EXPECT_EQ(cache.length(), 2 * before);
        }
        refuse_allocation(-1, kDeviceMemoryError);
        if (is_refused && allowed % 2 == 0) {  // the call before can still be undone
          cache.truncate(before);
          prefill(cache, all.part(before, before));
        }
        const std::int64_t first = cache.length();
        const at::Tensor out = prefill(cache, all.part(first, count));
        ASSERT_TRUE(out.allclose(wanted.narrow(2, first, count)))
            << is_long_before << " " << count << " " << allowed;
      }
    }
  }
}

TEST(CcaCacheTest, WhatIsGoneIsRefused) {
  const Inputs all = random_inputs(1, 300);
  KvCache cache(small());
  prefill(cache, all);
  EXPECT_THROW(cache.truncate(200), ValueError);
  EXPECT_THROW(cache.truncate(301), ValueError);
  EXPECT_THROW(cache.truncate(-1), ValueError);
  EXPECT_EQ(cache.length(), 300);
  cache.truncate(299);
  EXPECT_EQ(cache.stored_vectors(), 299 / 4 + 299 - 4 * ((299 - 6) / 4));
  const at::Tensor wanted = attention(all.query, all.key, all.value, small()).out;
  EXPECT_TRUE(prefill(cache, all.part(299, 1)).allclose(wanted.narrow(2, 299, 1)));
  cache.truncate(0);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_TRUE(prefill(cache, all.part(0, 50)).allclose(wanted.narrow(2, 0, 50)));
}

TEST(CcaCacheTest, OtherBoundariesAreRefused) {
  Options options = small();
  options.boundary = Boundary::kPaperEquation;
  EXPECT_THROW(KvCache{options}, ValueError);
}

}  // namespace
}  // namespace paperlab::cca
