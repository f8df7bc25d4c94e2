#include <algorithm>
#include <cmath>

#include "kernels/one_layer_fold/tile.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/model.h"

namespace paperlab::regular_language {
namespace {

using kernels::AffineGroup;
using kernels::PackedStrings;

// A token as a function of the free bits: parity(i & mask) ^ flip.
struct Token {
  std::uint32_t mask;
  int flip;
};

Token bit(int index) { return {1U << static_cast<unsigned>(index), 0}; }
Token constant(int value) { return {0, value}; }
Token operator^(Token a, Token b) { return {a.mask ^ b.mask, a.flip ^ b.flip}; }

void set(AffineGroup& group, int l, Token token) {
  group.mask[l] = token.mask;
  group.flip[l] = static_cast<std::uint8_t>(token.flip);
}

// The strings of even pairs labelled by parity: the first token is the label xor all others.
AffineGroup parity_group(int length, int query) {
  AffineGroup group = kernels::even_pairs_group(length, query);
  for (int l = 1; l + 1 < length; ++l) {
    group.mask[0] |= group.mask[l];
  }
  return group;
}

// Step `step` (from 1) of the chain of thought of L0 = base_length tokens w_1..w_L0. The tokens
// seen so far are w_1..w_L0 c_1..c_{step-1} with c_0 = w_L0, c_i = w_i ^ c_{i-1}; the last is
// `query` and y = +1 iff w_step equals it. Free bits: the label, w_{step+1}.., then the chain
// c_0.., from which w_i = c_i ^ c_{i-1}. Where the chain is longer than the columns of the fold, it
// is cut at c_cut, held at `cut_value`, so that every token reads rows alone or columns alone.
AffineGroup chain_group(int base_length, int step, int query, int cut, int cut_value) {
  const bool is_cut = cut >= 0;
  const int num_bits = base_length - 1 - (is_cut ? 1 : 0);
  AffineGroup group{base_length + step - 1, query, num_bits, std::ldexp(1.0, -base_length), {}, {}};
  const int num_free = base_length - 1 - step;
  std::vector<Token> chain(static_cast<std::size_t>(step), constant(query));
  int next = 1 + num_free;
  for (int i = cut + 1; i < step - 1; ++i) {  // after the cut: rows
    chain[static_cast<std::size_t>(i)] = bit(next++);
  }
  if (is_cut) {
    chain[static_cast<std::size_t>(cut)] = constant(cut_value);
    for (int i = 0; i < cut; ++i) {  // before the cut: columns
      chain[static_cast<std::size_t>(i)] = bit(next++);
    }
  }
  for (int i = 1; i < step; ++i) {
    set(group, i - 1, chain[static_cast<std::size_t>(i)] ^ chain[static_cast<std::size_t>(i - 1)]);
  }
  set(group, step - 1, bit(0) ^ constant(query));
  for (int i = 0; i < num_free; ++i) {
    set(group, step + i, bit(1 + i));
  }
  for (int i = 0; i + 1 < step; ++i) {
    set(group, base_length - 1 + i, chain[static_cast<std::size_t>(i)]);
  }
  return group;
}

// Both last tokens of a step, cut if the chain does not fit the columns.
void add_chain_groups(int base_length, int step, std::vector<AffineGroup>& groups) {
  const int num_bits = base_length - 1;
  const bool fits = step - 1 <= kernels::fold_shape(num_bits).column_bits;
  for (int query = 0; query < 2; ++query) {
    if (fits) {
      groups.push_back(chain_group(base_length, step, query, -1, 0));
      continue;
    }
    const int cut = kernels::fold_shape(num_bits - 1).column_bits;
    groups.push_back(chain_group(base_length, step, query, cut, 0));
    groups.push_back(chain_group(base_length, step, query, cut, 1));
  }
}

// Every string the same weight; the total stays the number of length terms.
void weigh_uniformly(std::vector<AffineGroup>& groups) {
  double total = 0.0;
  double count = 0.0;
  for (const AffineGroup& group : groups) {
    count += std::ldexp(1.0, group.num_bits);
    total += std::ldexp(group.weight, group.num_bits);
  }
  for (AffineGroup& group : groups) {
    group.weight = total / count;
  }
}

// With task kParity the string b alone is negative, which AffineGroup cannot say of one string.
bool is_negative_single(const TrainOptions& options, const AffineGroup& group) {
  return options.task == Task::kParity && group.length == 1 && group.query == 1;
}

}  // namespace

int regularizer_length(const TrainOptions& options) {
  return options.regularizer_length < 0 ? options.base_length - 1 : options.regularizer_length;
}

std::vector<AffineGroup> affine_groups(const TrainOptions& options) {
  std::vector<AffineGroup> groups;
  const bool is_cot = options.task == Task::kParityCot;
  const int even_pairs = is_cot ? regularizer_length(options) : options.max_length;
  for (int length = 1; length <= options.max_length; ++length) {
    for (int query = 0; query < 2 && length <= even_pairs; ++query) {
      groups.push_back(options.task == Task::kParity ? parity_group(length, query)
                                                     : kernels::even_pairs_group(length, query));
    }
    if (is_cot && length >= options.base_length) {
      add_chain_groups(options.base_length, length - options.base_length + 1, groups);
    }
  }
  if (options.uniform_weights) {
    weigh_uniformly(groups);
  }
  return groups;
}

std::vector<PackedStrings> packed_strings(const TrainOptions& options) {
  std::vector<PackedStrings> all;
  for (const AffineGroup& group : affine_groups(options)) {
    const std::uint32_t count = 1U << static_cast<unsigned>(group.num_bits);
    PackedStrings packed{group.length, group.query, group.weight, count, {}, {}};
    for (std::uint32_t block = 0; block * kernels::kStringsPerBlock < count; ++block) {
      for (int l = 0; l + 1 < group.length; ++l) {
        const unsigned flip = group.flip[l] != 0 ? 0xFFU : 0U;
        packed.tokens.push_back(
            static_cast<std::uint8_t>(kernels::lane_parities(group.mask[l], block) ^ flip));
      }
      packed.negative.push_back(group.num_bits > 0 ? kernels::lane_parities(1U, block)
                                : is_negative_single(options, group) ? std::uint8_t{1}
                                                                     : std::uint8_t{0});
    }
    all.push_back(std::move(packed));
  }
  return all;
}

std::vector<LabelledString> training_strings(const TrainOptions& options) {
  require<ValueError>(options.max_length >= 1 && options.max_length <= 20, "training_strings",
                      "max_length must be in 1..20", std::to_string(options.max_length));
  const bool is_chain = options.task == Task::kParityCot;
  require<ValueError>(
      !is_chain ||
          (options.base_length >= 2 && options.max_length == 2LL * options.base_length - 2),
      "training_strings", "max_length must be 2 * base_length - 2 with base_length >= 2",
      std::to_string(options.max_length) + " with base_length " +
          std::to_string(options.base_length));
  require<ValueError>(regularizer_length(options) <= options.max_length || !is_chain,
                      "training_strings", "regularizer_length must be at most max_length",
                      std::to_string(options.regularizer_length));
  std::vector<LabelledString> strings;
  for (const AffineGroup& group : affine_groups(options)) {
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
      LabelledString string{{}, kernels::affine_label(group, i), group.weight};
      if (is_negative_single(options, group)) {
        string.label = -1;
      }
      for (int l = 0; l < group.length; ++l) {
        string.tokens.push_back(static_cast<std::uint8_t>(kernels::affine_token(group, l, i)));
      }
      strings.push_back(std::move(string));
    }
  }
  return strings;
}

}  // namespace paperlab::regular_language
