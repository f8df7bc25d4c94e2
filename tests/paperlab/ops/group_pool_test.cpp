#include "paperlab/ops/group_pool.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace paperlab::ops {
namespace {

struct Inputs {
  at::Tensor query = at::randn({2, 4, 13, 5});
  at::Tensor key = at::randn({2, 2, 13, 5});
  at::Tensor value = at::randn({2, 2, 13, 5});
};

// A cache with room for eight core tokens of each of `heads` heads, all NaN.
at::Tensor cache(std::int64_t heads) { return at::full({2, heads, 8, 5}, NAN); }

void expect_appended(const GroupPoolOptions& options, std::int64_t heads) {
  const Inputs in;
  const GroupPoolResult wanted = group_pool(in.query, in.key, in.value, options);
  const at::Tensor core_key = cache(heads);
  const at::Tensor core_value = cache(heads);
  for (std::int64_t c = 0; c < 4; ++c) {  // the group alone, with its last query alone
    const std::int64_t t = 3 * c;
    group_pool_into(in.query.narrow(2, t + 2, 1), in.key.narrow(2, t, 3), in.value.narrow(2, t, 3),
                    options, core_key.narrow(2, c, 1), core_value.narrow(2, c, 1));
  }
  EXPECT_TRUE(at::equal(core_key.narrow(2, 0, 4), wanted.key));
  EXPECT_TRUE(at::equal(core_value.narrow(2, 0, 4), wanted.value));
  EXPECT_TRUE(core_key.narrow(2, 4, 4).isnan().all().item<bool>());
  EXPECT_TRUE(core_value.narrow(2, 4, 4).isnan().all().item<bool>());
}

TEST(GroupPoolOpTest, GroupsAppendedOneByOneAreThoseOfTheWhole) {
  expect_appended({.group = 3}, 4);
  expect_appended({.group = 3, .per_kv_head = true}, 2);
  expect_appended({.group = 3, .kind = "mean"}, 2);
  expect_appended({.group = 3, .kind = "max"}, 2);
}

TEST(GroupPoolOpTest, FewerGroupsThanThereAreMayBeAskedFor) {
  const Inputs in;
  const at::Tensor core_key = cache(4);
  const at::Tensor core_value = cache(4);
  group_pool_into(in.query, in.key, in.value, {.group = 3}, core_key.narrow(2, 1, 2),
                  core_value.narrow(2, 1, 2));
  const GroupPoolResult wanted = group_pool(in.query, in.key, in.value, {.group = 3});
  EXPECT_TRUE(at::equal(core_key.narrow(2, 1, 2), wanted.key.narrow(2, 0, 2)));
  EXPECT_TRUE(core_key.narrow(2, 3, 5).isnan().all().item<bool>());
}

TEST(GroupPoolOpTest, WritingCountsAsAChange) {
  const Inputs in;
  const at::Tensor core_key = cache(4);
  const at::Tensor core_value = cache(4);
  const auto before = core_key._version();
  group_pool_into(in.query, in.key, in.value, {.group = 3}, core_key.narrow(2, 0, 4),
                  core_value.narrow(2, 0, 4));
  EXPECT_GT(core_key._version(), before);
}

// The error's text, and that nothing was written.
std::string error_of(const Inputs& in, const GroupPoolOptions& options, const at::Tensor& core_key,
                     const at::Tensor& core_value) {
  try {
    group_pool_into(in.query, in.key, in.value, options, core_key, core_value);
  } catch (const c10::Error& error) {
    EXPECT_TRUE(core_key.isnan().all().item<bool>());
    return error.what_without_backtrace();
  }
  return "none";
}

TEST(GroupPoolOpTest, BadMemoryIsRefused) {
  const Inputs in;
  const GroupPoolOptions options = {.group = 3};
  const at::Tensor core = at::full({2, 4, 4, 5}, NAN);
  EXPECT_EQ(error_of(in, options, at::full({2, 4, 5, 5}, NAN), core),
            "group_pool_into: core_key must be [2, 4, m, 5] with m <= 4, got [2, 4, 5, 5]");
  EXPECT_EQ(error_of(in, options, at::full({2, 2, 4, 5}, NAN), core),
            "group_pool_into: core_key must be [2, 4, m, 5] with m <= 4, got [2, 2, 4, 5]");
  EXPECT_EQ(error_of(in, options, core, at::full({2, 4, 3, 5}, NAN)),
            "group_pool_into: core_value must be [2, 4, 4, 5], got [2, 4, 3, 5]");
  EXPECT_EQ(error_of(in, options, core.to(at::kDouble), core),
            "group_pool_into: core_key must be of dtype Float, got Double");
  EXPECT_EQ(error_of(in, options, at::full({2, 4, 5, 4}, NAN).mT(), core),
            "group_pool_into: core_key must be contiguous in its last dimension, got strides [80, "
            "20, 1, 4]");
  Inputs few = in;
  few.query = in.query.narrow(2, 12, 1);
  EXPECT_EQ(error_of(few, options, core, core.clone()),
            "group_pool_into: query must hold the last token of every group, so at least 11 "
            "tokens, got 1");
}

}  // namespace
}  // namespace paperlab::ops
