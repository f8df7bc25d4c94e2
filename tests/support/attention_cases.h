#pragma once
// Cases of attention: shapes and options, random ones, and the smallest that still fails.

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "kernels/attention/key_rule.h"
#include "kernels/common/tensor_view.h"

namespace paperlab::test {

enum class AttentionLayout : std::uint8_t {
  kBHTD,    // contiguous
  kBTHD,    // heads of a position next to each other
  kPadded,  // BHTD with unused elements between rows, heads and batch rows
  kSpaced,  // the same, in whole packs of 16 bytes
  kShared,  // kBHTD, but one head of one batch row serves all: strides of 0, of keys and values
};

enum class KeyRanges : std::uint8_t {
  kAll,    // no key_start, no key_end
  kLeft,   // key_start alone
  kRight,  // key_end alone
  kBoth,   // batch rows with few, all and no keys
};

struct AttentionCase {
  std::int64_t batch = 1;
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t num_queries = 1;
  std::int64_t num_keys = 1;
  std::int64_t head_dim = 8;
  kernels::DType dtype = kernels::DType::kFloat32;
  kernels::KeyRule rule = kernels::KeyRule::dense();
  std::int64_t num_prefix_heads = 0;   // 0: no prefix, even if the rule has one
  std::int64_t num_extra_entries = 0;  // prefix entries beyond those that the rule makes visible
  bool has_prefix_query = false;
  bool has_grad_lse = true;
  KeyRanges ranges = KeyRanges::kAll;
  AttentionLayout layout = AttentionLayout::kBHTD;
  std::int64_t offset = 0;           // of every tensor from a 64-byte boundary, in elements
  std::optional<double> scale = {};  // absent: 1/sqrt(head_dim)
  double magnitude = 1.0;            // standard deviation of queries and keys; others have 1
  std::uint64_t seed = 7;
};

// J: what the rule makes visible to the last row, and the extra entries; 0 without a prefix.
std::int64_t num_prefix_entries(const AttentionCase& of);
double scale_of(const AttentionCase& of);

// As C++ source: the fields that differ from their defaults.
std::string literal_of(const AttentionCase& of);
void PrintTo(const AttentionCase& of, std::ostream* out);

const char* name_of(kernels::DType dtype);
bool needs_prefix(const kernels::KeyRule& rule);

// Tiny to medium: at most `max_products` multiplications of query and key elements.
AttentionCase random_attention_case(std::uint64_t seed, std::int64_t max_products);

// Valid cases with one thing smaller or left out, the largest steps first.
std::vector<AttentionCase> simpler_cases(const AttentionCase& of);

// Takes the first simpler case that fails, as long as there is one.
AttentionCase smallest_failure(AttentionCase of,
                               const std::function<bool(const AttentionCase&)>& fails);

}  // namespace paperlab::test
