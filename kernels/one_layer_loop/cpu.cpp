// Compiled once per instruction set: see vec.h for what may be included here.
#include "kernels/one_layer_loop/cpu.h"

#include "kernels/common/query_table.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

struct Scores {
  Vec8d z;
  Vec8d n;
};

Scores score(const StringBlocks& blocks, QueryTable table, const std::uint8_t* tokens) {
  const int last = embedding_index(blocks.length - 1, blocks.query);
  Scores sums{set1(table.e[last]), set1(table.eu[last])};
  for (int l = 0; l + 1 < blocks.length; ++l) {
    const int a = embedding_index(l, 0);
    sums.z = sums.z + select(tokens[l], set1(table.e[a + 1]), set1(table.e[a]));
    sums.n = sums.n + select(tokens[l], set1(table.eu[a + 1]), set1(table.eu[a]));
  }
  return sums;
}

// Lanes of a block that hold strings.
std::uint8_t lanes_in_use(const StringBlocks& blocks, std::int64_t block) {
  const int count = block + 1 < blocks.num_blocks ? int{kLanes} : blocks.last_count;
  return static_cast<std::uint8_t>((1U << static_cast<unsigned>(count)) - 1U);
}

// Q and R of eight strings of mixed labels, 0 in unused lanes.
StringGradient mixed_gradient(const Scores& sums, std::uint8_t negative, std::uint8_t used,
                              double weight) {
  const Vec8d y = select(negative, set1(-1.0), set1(1.0));
  const Vec8d inverse = set1(1.0) / sums.z;
  const Vec8d t = sums.n * inverse;
  const Vec8d c = (y * set1(-weight)) / (set1(1.0) + exp(y * t));
  const Vec8d q = select(used, c * inverse, zero());
  return {q, q * t};
}

void accumulate(double* at, Vec8d value) { store(at, load(at) + value); }

// Accumulators [length - 1][Q of a, Q of b, R of a, R of b][lane].
void scatter(const std::uint8_t* tokens, int positions, const StringGradient& gradient,
             double* accumulators) {
  for (int l = 0; l < positions; ++l) {
    double* at = accumulators + static_cast<std::ptrdiff_t>(l) * 4 * kLanes;
    accumulate(at, select(tokens[l], zero(), gradient.q));
    accumulate(at + kLanes, select(tokens[l], gradient.q, zero()));
    accumulate(at + 2 * kLanes, select(tokens[l], zero(), gradient.r));
    accumulate(at + 3 * kLanes, select(tokens[l], gradient.r, zero()));
  }
}

void task(const StringBlocks& blocks, QueryTable table, double* scratch, Marginal* out) {
  const int positions = blocks.length - 1;
  for (int i = 0; i < 4 * positions; ++i) {
    store(scratch + static_cast<std::ptrdiff_t>(i) * kLanes, zero());
  }
  StringGradient total{zero(), zero()};
  for (std::int64_t block = 0; block < blocks.num_blocks; ++block) {
    const std::uint8_t* tokens = blocks.tokens + block * positions;
    const StringGradient gradient =
        mixed_gradient(score(blocks, table, tokens), blocks.negative[block],
                       lanes_in_use(blocks, block), blocks.weight);
    total = {total.q + gradient.q, total.r + gradient.r};
    scatter(tokens, positions, gradient, scratch);
  }
  for (int l = 0; l < positions; ++l) {
    const double* at = scratch + static_cast<std::ptrdiff_t>(l) * 4 * kLanes;
    out[embedding_index(l, 0)] = {sum(load(at)), sum(load(at + 2 * kLanes))};
    out[embedding_index(l, 1)] = {sum(load(at + kLanes)), sum(load(at + 3 * kLanes))};
  }
  out[embedding_index(positions, blocks.query)] = {sum(total.q), sum(total.r)};
  out[embedding_index(positions, 1 - blocks.query)] = {0.0, 0.0};
}

void evaluate(const StringBlocks& blocks, QueryTable table, OneLayerEvaluation& out) {
  for (std::int64_t block = 0; block < blocks.num_blocks; ++block) {
    const Scores sums = score(blocks, table, blocks.tokens + block * (blocks.length - 1));
    const Vec8d y = select(blocks.negative[block], set1(-1.0), set1(1.0));
    const int count = block + 1 < blocks.num_blocks ? int{kLanes} : blocks.last_count;
    add_margins(y * (sums.n / sums.z), count, blocks.weight, out);
  }
}

}  // namespace

LoopCpu loop_cpu() { return {query_table, task, evaluate}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
