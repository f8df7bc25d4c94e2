// What must not change a bit of attention, and forms that equal dense attention.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/support/attention_exact.h"
#include "tests/support/error_measure.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionLayout;
using test::AttentionTensors;
using test::Direction;
using test::ExpectedAttention;
using test::ExpectedTensor;
using test::GuardedTensor;
using test::KeyRanges;

using Results = std::vector<std::vector<double>>;

Results results_of(AttentionTensors& tensors, const Executor& executor) {
  tensors.run_forward(executor);
  tensors.run_backward(executor);
  Results results;
  for (const auto& tensor_list : {tensors.forward_results(), tensors.backward_results()}) {
    for (const GuardedTensor* tensor : tensor_list) {
      results.push_back(tensor->values());
    }
  }
  return results;
}

Results results_of(const AttentionCase& of) {
  AttentionTensors tensors(of);
  return results_of(tensors, serial_executor());
}

void expect_same_bits(const Results& a, const Results& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(test::has_same_bits(a[i], b[i])) << "result " << i;
  }
}

// Several units, tiles, key blocks and private gradients; one and several heads; a single query.
std::vector<AttentionCase> varied_cases() {
  std::vector<AttentionCase> cases = {
      {.num_queries = 300, .num_keys = 300, .head_dim = 64},
      {.batch = 2,
       .num_heads = 6,
       .num_kv_heads = 2,
       .num_queries = 90,
       .num_keys = 200,
       .head_dim = 24,
       .rule = KeyRule::core_context(3, 20),
       .num_prefix_heads = 2,
       .has_prefix_query = true},
      {.batch = 2,
       .num_heads = 4,
       .num_kv_heads = 2,
       .num_queries = 150,
       .num_keys = 150,
       .rule = KeyRule::sinks(5, 40),
       .num_prefix_heads = 4,
       .ranges = KeyRanges::kBoth},
      {.batch = 3, .num_heads = 8, .num_kv_heads = 2, .num_keys = 1100, .head_dim = 64}};
  for (std::size_t i = 0, count = cases.size(); i < count; ++i) {
    cases.push_back(cases[i]);
    cases.back().dtype = DType::kBFloat16;
  }
  cases.push_back(cases[1]);
  cases.back().dtype = DType::kFloat64;
  return cases;
}

class AttentionInvariantTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    isa_ = std::make_unique<test::ScopedIsa>(GetParam());
  }

 private:
  std::unique_ptr<test::ScopedIsa> isa_;
};

TEST_P(AttentionInvariantTest, BitsDoNotDependOnThreadsOrTheRun) {
  for (const AttentionCase& of : varied_cases()) {
    SCOPED_TRACE(test::literal_of(of));
    AttentionTensors tensors(of);
    const Results serial = results_of(tensors, serial_executor());
    for (const int num_threads : {1, 2, 3, 7}) {
      const ThreadPool pool(num_threads);
      for (int run = 0; run < 2; ++run) {
        expect_same_bits(results_of(tensors, pool), serial);
      }
    }
  }
}

TEST_P(AttentionInvariantTest, BitsDoNotDependOnTheLayout) {
  for (const AttentionCase& of : varied_cases()) {
    SCOPED_TRACE(test::literal_of(of));
    const Results contiguous = results_of(of);
    AttentionCase strided = of;
    strided.layout = AttentionLayout::kBTHD;
    expect_same_bits(results_of(strided), contiguous);
    strided.layout = AttentionLayout::kPadded;
    strided.offset = 3;
    expect_same_bits(results_of(strided), contiguous);
  }
}

// Batch rows, and heads with their key head, in the opposite order.
void copy_reversed(const GuardedTensor& from, GuardedTensor& to, std::int64_t num_groups) {
  if (from.is_absent()) {
    return;
  }
  const std::int64_t shared = from.size(1) / num_groups;
  for (std::int64_t i = 0; i < from.num_elements(); ++i) {
    const auto [b, h, t, d] = from.index_of(i);
    const std::int64_t group = num_groups - 1 - h / shared;
    to.set(from.size(0) - 1 - b, group * shared + h % shared, t, d, from.get(b, h, t, d));
  }
}

TEST_P(AttentionInvariantTest, ResultsMoveWithBatchRowsAndHeads) {
  for (const AttentionCase& of : varied_cases()) {
    SCOPED_TRACE(test::literal_of(of));
    AttentionTensors tensors(of);
    AttentionTensors reversed(of);
    const std::int64_t groups = of.num_kv_heads;
    copy_reversed(tensors.query, reversed.query, groups);
    copy_reversed(tensors.key, reversed.key, groups);
    copy_reversed(tensors.value, reversed.value, groups);
    copy_reversed(tensors.prefix_query, reversed.prefix_query, groups);
    copy_reversed(tensors.prefix_key, reversed.prefix_key, groups);
    copy_reversed(tensors.prefix_value, reversed.prefix_value, groups);
    copy_reversed(tensors.grad_out, reversed.grad_out, groups);
    copy_reversed(tensors.grad_lse, reversed.grad_lse, groups);
    std::reverse(reversed.key_start.begin(), reversed.key_start.end());
    std::reverse(reversed.key_end.begin(), reversed.key_end.end());
    const Results results = results_of(tensors, serial_executor());
    results_of(reversed, serial_executor());
    AttentionTensors back(of);
    copy_reversed(reversed.out, back.out, groups);
    copy_reversed(reversed.lse, back.lse, groups);
    copy_reversed(reversed.query_gradient, back.query_gradient, groups);
    copy_reversed(reversed.key_gradient, back.key_gradient, groups);
    copy_reversed(reversed.value_gradient, back.value_gradient, groups);
    copy_reversed(reversed.prefix_query_gradient, back.prefix_query_gradient, groups);
    copy_reversed(reversed.prefix_key_gradient, back.prefix_key_gradient, groups);
    copy_reversed(reversed.prefix_value_gradient, back.prefix_value_gradient, groups);
    Results moved;
    for (const auto& tensor_list : {back.forward_results(), back.backward_results()}) {
      for (const GuardedTensor* tensor : tensor_list) {
        moved.push_back(tensor->values());
      }
    }
    expect_same_bits(moved, results);
  }
}

// An expanded batch dimension has stride 0.
TEST_P(AttentionInvariantTest, ExpandedInputsGiveTheBitsOfCopies) {
  for (const std::int64_t queries : {1, 70}) {
    AttentionTensors copies({.batch = 3, .num_heads = 2, .num_queries = queries, .num_keys = 80});
    for (GuardedTensor* tensor : {&copies.key, &copies.value}) {
      for (std::int64_t i = 0; i < tensor->num_elements(); ++i) {
        const auto [b, h, t, d] = tensor->index_of(i);
        tensor->set(b, h, t, d, tensor->get(0, h, t, d));
      }
    }
    copies.run_forward(serial_executor());
    const std::vector<double> out = copies.out.values();
    AttentionInputs inputs = copies.inputs();
    inputs.key.stride[0] = inputs.value.stride[0] = 0;
    attention(inputs, copies.outputs(), serial_executor());
    EXPECT_TRUE(test::has_same_bits(copies.out.values(), out));
  }
}

TEST_P(AttentionInvariantTest, AWindowOfAllKeysGivesTheBitsOfDenseAttention) {
  for (const std::int64_t queries : {1, 20, 130}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
      AttentionCase of = {.num_heads = 2, .num_queries = queries, .num_keys = 130, .dtype = dtype};
      const Results dense = results_of(of);
      for (const std::int64_t window : {130, 131, 1'000'000}) {
        of.rule = KeyRule::sliding(window);
        expect_same_bits(results_of(of), dense);
      }
    }
  }
}

// The prefix holds the first keys themselves, and its query is the query: what the rule moves from
// one stream to the other changes nothing but the order of sums.
void expect_dense(const AttentionCase& of) {
  SCOPED_TRACE(test::literal_of(of));
  AttentionTensors tensors(of);
  for (std::int64_t i = 0; i < tensors.prefix_key.num_elements(); ++i) {
    const auto [b, h, t, d] = tensors.prefix_key.index_of(i);
    tensors.prefix_key.set(b, h, t, d, tensors.key.get(b, h, t, d));
    tensors.prefix_value.set(b, h, t, d, tensors.value.get(b, h, t, d));
  }
  if (of.has_prefix_query) {
    tensors.prefix_query.set_values(tensors.query.values());
  }
  AttentionCase plain = of;
  plain.rule = KeyRule::dense();
  plain.num_prefix_heads = 0;
  plain.has_prefix_query = false;
  const ExpectedAttention dense =
      test::expected_attention(AttentionTensors(plain), Direction::kBoth);
  tensors.run_forward(serial_executor());
  EXPECT_TRUE(test::is_within(tensors.out, dense.forward[0]));
  EXPECT_TRUE(test::is_within(tensors.lse, dense.forward[1]));
  // The gradients of both roles of a tensor add up; so does what each of them may be off.
  const ExpectedAttention parts = test::expected_attention(tensors, Direction::kBoth);
  tensors.run_backward(serial_executor());
  const std::vector<const GuardedTensor*> gradients = tensors.backward_results();
  const std::size_t num_prefix_queries = of.has_prefix_query ? 1 : 0;
  for (std::size_t i = 0; i < 3; ++i) {
    ExpectedTensor sum = dense.backward[i];
    std::vector<double> got = gradients[i]->values();
    sum.allowed = parts.backward[i].allowed;
    const std::size_t prefix = i == 0 ? 3 : 2 + num_prefix_queries + i;
    const bool has_part = i > 0 || of.has_prefix_query;
    const std::vector<double> more = has_part ? gradients[prefix]->values() : std::vector<double>();
    for (std::size_t j = 0; j < more.size(); ++j) {
      // One head: the prefix's rows are the first ones.
      got[j] += more[j];
      sum.allowed[j] += parts.backward[prefix].allowed[j];
    }
    for (std::size_t j = 0; j < got.size(); ++j) {
      ASSERT_LE(std::abs(got[j] - sum.exact[j]), sum.allowed[j]) << sum.name << ", element " << j;
    }
  }
}

TEST_P(AttentionInvariantTest, CoreContextOfSingleKeysIsDenseAttention) {
  for (const std::int64_t window : {0, 1, 30}) {
    for (const std::int64_t queries : {1, 40, 90}) {
      expect_dense({.num_queries = queries,
                    .num_keys = 90,
                    .rule = KeyRule::core_context(1, window),
                    .num_prefix_heads = 1,
                    .has_prefix_query = window == 1});
    }
  }
}

TEST_P(AttentionInvariantTest, SinksThatReachTheWindowAreDenseAttention) {
  for (const std::int64_t num_sinks : {0, 10, 60, 89}) {
    for (const std::int64_t queries : {1, 40, 90}) {
      expect_dense({.num_queries = queries,
                    .num_keys = 90,
                    .rule = KeyRule::sinks(num_sinks, 90 - num_sinks),
                    .num_prefix_heads = 1,
                    .has_prefix_query = true});
    }
  }
}

// Memory of which all but bytes begin..end-1 cannot be touched.
class FencedMemory {
 public:
  FencedMemory(std::size_t num_bytes, std::size_t begin, std::size_t end)
      : num_bytes_(num_bytes),
        data_(mmap(nullptr, num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    is_ready_ =
        data_ != MAP_FAILED && mprotect(data() + begin, end - begin, PROT_READ | PROT_WRITE) == 0;
  }
  ~FencedMemory() { munmap(data_, num_bytes_); }
  FencedMemory(const FencedMemory&) = delete;
  FencedMemory& operator=(const FencedMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  bool is_ready() const { return is_ready_; }

 private:
  std::size_t num_bytes_;
  void* data_;
  bool is_ready_ = false;
};

void copy_rows(const GuardedTensor& from, std::size_t begin, std::size_t end,
               const FencedMemory& to) {
  const std::vector<std::byte> bytes = from.all_bytes();
  std::copy_n(bytes.data() + begin, end - begin, to.data() + begin);
}

// 256 keys end on a page at every head size that is a multiple of eight.
TEST_P(AttentionInvariantTest, KeysOutsideTheirRangeAreNeverRead) {
  constexpr std::int64_t kStart = 256;
  constexpr std::int64_t kEnd = 512;
  constexpr std::int64_t kNumKeys = 768;
  const std::vector<KeyRule> rules = {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(300),
                                      KeyRule::core_context(4, 100)};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t head_dim : {8, 24}) {
      for (const KeyRule& rule : rules) {
        for (const std::int64_t queries : {1, 5, 270}) {
          AttentionTensors tensors({.num_heads = 2,
                                    .num_queries = queries,
                                    .num_keys = kNumKeys,
                                    .head_dim = head_dim,
                                    .dtype = dtype,
                                    .rule = rule,
                                    .num_prefix_heads = test::needs_prefix(rule) ? 1 : 0});
          tensors.key_start = {kStart};
          tensors.key_end = {kEnd};
          tensors.run_forward(serial_executor());
          const std::vector<double> out = tensors.out.values();
          tensors.run_backward(serial_executor());
          const std::vector<double> gradient = tensors.key_gradient.values();
          const std::size_t row = tensors.key.all_bytes().size() / kNumKeys;
          const FencedMemory key(kNumKeys * row, kStart * row, kEnd * row);
          const FencedMemory value(kNumKeys * row, kStart * row, kEnd * row);
          ASSERT_TRUE(key.is_ready() && value.is_ready());
          copy_rows(tensors.key, kStart * row, kEnd * row, key);
          copy_rows(tensors.value, kStart * row, kEnd * row, value);
          AttentionInputs inputs = tensors.inputs();
          inputs.key.data = key.data();
          inputs.value.data = value.data();
          attention(inputs, tensors.outputs(), serial_executor());
          EXPECT_TRUE(test::has_same_bits(tensors.out.values(), out));
          attention_backward(inputs, tensors.backward_inputs(), tensors.gradients(),
                             serial_executor());
          EXPECT_TRUE(test::has_same_bits(tensors.key_gradient.values(), gradient));
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionInvariantTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

}  // namespace
}  // namespace paperlab::kernels
