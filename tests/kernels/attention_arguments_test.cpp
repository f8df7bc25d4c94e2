// Every bad argument: the type of error, what it says, and nothing written.
#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <typeinfo>
#include <vector>

#include "kernels/attention/attention.h"
#include "paperlab/core/error.h"
#include "tests/support/attention_tensors.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionTensors;
using test::GuardedTensor;

const AttentionCase kCase = {.batch = 2,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .num_queries = 5,
                             .num_keys = 9,
                             .rule = KeyRule::core_context(2, 1),
                             .num_prefix_heads = 2,
                             .has_prefix_query = true,
                             .ranges = test::KeyRanges::kBoth};

struct BadInput {
  std::string name;
  std::string message;
  std::function<void(AttentionInputs&)> change;
};

// The error's type and text, or "none".
template <class F>
std::string error_of(F call) {
  try {
    call();
  } catch (const ShapeError& error) {
    return std::string("ShapeError: ") + error.what();
  } catch (const DTypeError& error) {
    return std::string("DTypeError: ") + error.what();
  } catch (const ValueError& error) {
    return std::string("ValueError: ") + error.what();
  } catch (const std::exception& error) {
    return std::string(typeid(error).name()) + ": " + error.what();
  }
  return "none";
}

bool is_untouched(const std::vector<const GuardedTensor*>& results) {
  for (const GuardedTensor* tensor : results) {
    for (const std::byte byte : tensor->all_bytes()) {
      if (byte != std::byte{0xFF}) {
        return false;
      }
    }
  }
  return true;
}

std::vector<BadInput> bad_views() {
  std::vector<BadInput> bad;
  struct Named {
    std::string name;
    ConstTensorView AttentionInputs::* view;
    std::string wanted;
  };
  const std::vector<Named> views = {
      {"key", &AttentionInputs::key, "[2, 2, 9, 8]"},
      {"value", &AttentionInputs::value, "[2, 2, 9, 8]"},
      {"prefix_query", &AttentionInputs::prefix_query, "[2, 4, 5, 8]"},
      {"prefix_key", &AttentionInputs::prefix_key, "[2, 2, 4, 8]"},
      {"prefix_value", &AttentionInputs::prefix_value, "[2, 2, 4, 8]"}};
  for (const Named& named : views) {
    const auto view = named.view;
    for (const int dimension : {0, 3}) {
      bad.push_back({named.name + " size " + std::to_string(dimension),
                     "ShapeError: attention: " + named.name + " must be " + named.wanted + ", got ",
                     [=](AttentionInputs& in) { ++(in.*view).size[dimension]; }});
    }
    bad.push_back({named.name + " dtype",
                   "DTypeError: attention: " + named.name + " must be of the dtype of query, got ",
                   [=](AttentionInputs& in) { (in.*view).dtype = DType::kFloat64; }});
    bad.push_back({named.name + " stride",
                   "ShapeError: attention: " + named.name +
                       " must be contiguous in its last dimension, got stride 2",
                   [=](AttentionInputs& in) { (in.*view).stride[3] = 2; }});
  }
  for (const Named& named : {views[1], views[2], views[4]}) {  // heads and rows follow from others
    const auto view = named.view;
    for (const int dimension : {1, 2}) {
      bad.push_back({named.name + " size " + std::to_string(dimension),
                     "ShapeError: attention: " + named.name + " must be " + named.wanted + ", got ",
                     [=](AttentionInputs& in) { --(in.*view).size[dimension]; }});
    }
  }
  bad.push_back({"query stride",
                 "ShapeError: attention: query must be contiguous in its last dimension, got "
                 "stride 2",
                 [](AttentionInputs& in) { in.query.stride[3] = 2; }});
  return bad;
}

std::vector<BadInput> bad_sizes() {
  const auto set_width = [](AttentionInputs& in, std::int64_t width) {
    for (ConstTensorView* view :
         {&in.query, &in.key, &in.value, &in.prefix_query, &in.prefix_key, &in.prefix_value}) {
      view->size[3] = width;
    }
  };
  return {
      {"head_dim 0", "ShapeError: attention: head_dim must be in 1..256, got 0",
       [=](AttentionInputs& in) { set_width(in, 0); }},
      {"head_dim 257", "ShapeError: attention: head_dim must be in 1..256, got 257",
       [=](AttentionInputs& in) { set_width(in, 257); }},
      {"query heads", "ShapeError: attention: query's heads must be a multiple of key's (2), got 3",
       [](AttentionInputs& in) { in.query.size[1] = 3; }},
      {"key heads", "ShapeError: attention: query's heads must be a multiple of key's (3), got 4",
       [](AttentionInputs& in) { in.key.size[1] = 3; }},
      {"no key heads",
       "ShapeError: attention: query's heads must be a multiple of key's (0), got 4",
       [](AttentionInputs& in) { in.key.size[1] = in.value.size[1] = 0; }},
      {"prefix heads",
       "ShapeError: attention: prefix_key must have as many heads as query or key, got "
       "[2, 3, 4, 8]",
       [](AttentionInputs& in) { in.prefix_key.size[1] = in.prefix_value.size[1] = 3; }},
      {"short prefix", "ShapeError: attention: prefix_key must have at least 4 entries, got ",
       [](AttentionInputs& in) { in.prefix_key.size[2] = in.prefix_value.size[2] = 3; }},
      {"short prefix of a longer past",
       "ShapeError: attention: prefix_key must have at least 7 entries, got ",
       [](AttentionInputs& in) { in.rule.num_past = 6; }},
      {"no prefix", "ShapeError: attention: prefix_key must have at least 4 entries, got ",
       [](AttentionInputs& in) { in.prefix_key = in.prefix_value = in.prefix_query = {}; }}};
}

std::vector<BadInput> bad_values() {
  static const std::vector<std::int64_t> below = {0, -1};
  static const std::vector<std::int64_t> above = {0, 10};
  return {{"window of core context", "ValueError: attention: window must be at least 0, got -1",
           [](AttentionInputs& in) { in.rule.window = -1; }},
          {"window", "ValueError: attention: window must be at least 1, got 0",
           [](AttentionInputs& in) { in.rule = KeyRule::sliding(0); }},
          {"window of sinks", "ValueError: attention: window must be at least 1, got 0",
           [](AttentionInputs& in) { in.rule = KeyRule::sinks(1, 0); }},
          {"group", "ValueError: attention: group must be at least 1, got 0",
           [](AttentionInputs& in) { in.rule.group = 0; }},
          {"num_sinks", "ValueError: attention: num_sinks must be at least 0, got -1",
           [](AttentionInputs& in) { in.rule = KeyRule::sinks(-1, 3); }},
          {"kept", "ValueError: attention: kept must be at least 0, got -1",
           [](AttentionInputs& in) { in.rule.kept = -1; }},
          {"overlap", "ValueError: attention: overlap must be 0 or 1, got 2",
           [](AttentionInputs& in) { in.rule.overlap = 2; }},
          {"num_past", "ValueError: attention: num_past must be at least 0, got -1",
           [](AttentionInputs& in) { in.rule.num_past = -1; }},
          {"key_start below", "ValueError: attention: key_start must be in 0..9, got -1",
           [](AttentionInputs& in) { in.key_start = below.data(); }},
          {"key_start above", "ValueError: attention: key_start must be in 0..9, got 10",
           [](AttentionInputs& in) { in.key_start = above.data(); }},
          {"key_end below", "ValueError: attention: key_end must be in 0..9, got -1",
           [](AttentionInputs& in) { in.key_end = below.data(); }},
          {"key_end above", "ValueError: attention: key_end must be in 0..9, got 10",
           [](AttentionInputs& in) { in.key_end = above.data(); }}};
}

void expect_refused(const std::vector<BadInput>& inputs) {
  for (const BadInput& bad : inputs) {
    SCOPED_TRACE(bad.name);
    AttentionTensors tensors(kCase);
    AttentionInputs in = tensors.inputs();
    bad.change(in);
    const std::string forward =
        error_of([&] { attention(in, tensors.outputs(), serial_executor()); });
    EXPECT_EQ(forward.substr(0, bad.message.size()), bad.message) << forward;
    EXPECT_TRUE(is_untouched(tensors.forward_results()));
    const std::string backward = error_of([&] {
      attention_backward(in, tensors.backward_inputs(), tensors.gradients(), serial_executor());
    });
    EXPECT_EQ(backward.substr(0, bad.message.size()), bad.message) << backward;
    EXPECT_TRUE(is_untouched(tensors.backward_results()));
  }
}

TEST(AttentionArgumentsTest, TheUnchangedCaseIsTaken) {
  AttentionTensors tensors(kCase);
  EXPECT_EQ(error_of([&] { tensors.run_forward(serial_executor()); }), "none");
  EXPECT_EQ(error_of([&] { tensors.run_backward(serial_executor()); }), "none");
}

TEST(AttentionArgumentsTest, ViewsThatDoNotFitAreRefused) { expect_refused(bad_views()); }

TEST(AttentionArgumentsTest, SizesThatDoNotFitAreRefused) { expect_refused(bad_sizes()); }

TEST(AttentionArgumentsTest, ValuesOutsideTheirRangeAreRefused) { expect_refused(bad_values()); }

TEST(AttentionArgumentsTest, MoreKeysThanAnInt32CountsAreRefused) {
  AttentionTensors tensors({.num_keys = 1});
  AttentionInputs in = tensors.inputs();
  in.key.size[2] = in.value.size[2] = std::numeric_limits<std::int32_t>::max();
  const std::string error = error_of([&] { attention(in, tensors.outputs(), serial_executor()); });
  EXPECT_EQ(error.find("ShapeError: attention: key must have at most "), 0U) << error;
  EXPECT_TRUE(is_untouched(tensors.forward_results()));
}

// A head of one element has no distance between elements.
TEST(AttentionArgumentsTest, TheLastStrideOfASingleElementIsFree) {
  AttentionTensors tensors({.num_queries = 3, .num_keys = 3, .head_dim = 1});
  AttentionInputs in = tensors.inputs();
  in.query.stride[3] = in.key.stride[3] = 7;
  EXPECT_EQ(error_of([&] { attention(in, tensors.outputs(), serial_executor()); }), "none");
}

}  // namespace
}  // namespace paperlab::kernels
