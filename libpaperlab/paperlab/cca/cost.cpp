#include "paperlab/cca/cost.h"

#include <algorithm>
#include <string>

#include "paperlab/cca/partition.h"
#include "paperlab/core/error.h"

namespace paperlab::cca {
namespace {

constexpr char kFunction[] = "cost";
constexpr std::int64_t kMaxSize = std::int64_t{1} << 60;
constexpr double kMaxCount = 9e18;  // below 2^63

void check_size(const char* name, std::int64_t value, std::int64_t low) {
  require<ValueError>(
      value >= low && value <= kMaxSize, kFunction,
      std::string(name) + " must be in " + std::to_string(low) + ".." + std::to_string(kMaxSize),
      std::to_string(value));
}

void check_arguments(std::int64_t length, const Options& options, const AttentionShape& shape) {
  validate(kFunction, options);
  check_size("length", length, 0);
  check_size("heads", shape.heads, 1);
  check_size("kv_heads", shape.kv_heads, 1);
  check_size("head_dim", shape.head_dim, 1);
  check_size("layers", shape.layers, 1);
  check_size("bytes_per_element", shape.bytes_per_element, 1);
  require<ValueError>(shape.heads % shape.kv_heads == 0, kFunction,
                      "kv_heads must divide heads (" + std::to_string(shape.heads) + ")",
                      std::to_string(shape.kv_heads));
}

// FLOPs and bytes, the products of all sizes, are the largest counts.
void check_fits(std::int64_t length, const AttentionShape& shape) {
  const auto tokens = static_cast<double>(std::max<std::int64_t>(length, 1));
  const double widths = static_cast<double>(shape.heads) * static_cast<double>(shape.head_dim) *
                        static_cast<double>(shape.layers);
  const double flops = 2.0 * widths * tokens * (tokens + 1.0);
  const double bytes = 4.0 * widths * tokens * static_cast<double>(shape.bytes_per_element);
  const double largest = flops > bytes ? flops : bytes;
  require<ValueError>(largest < kMaxCount, kFunction,
                      "length, heads, head_dim and layers must give counts below 2^63",
                      std::to_string(largest));
}

// Of j(i) for i = 1..L: with x = L - n - s, Q = x div g and R = x mod g, g queries each see
// 1..Q - 1 core tokens and R + 1 queries see Q.
std::int64_t sum_of_visible(std::int64_t length, const Options& options) {
  const std::int64_t group = options.group_size;
  const std::int64_t behind =
      std::max<std::int64_t>(length - std::min(length, options.window) - options.keep_first, 0);
  const std::int64_t groups = behind / group;
  return group * (groups * (groups - 1) / 2) + groups * (behind % group + 1);
}

}  // namespace

Cost cost(std::int64_t length, const Options& options, const AttentionShape& given) {
  AttentionShape shape = given;
  shape.kv_heads = given.kv_heads == 0 ? given.heads : given.kv_heads;
  check_arguments(length, options, shape);
  check_fits(length, shape);
  Cost result;
  result.full_pairs = length % 2 == 0 ? length / 2 * (length + 1) : (length + 1) / 2 * length;
  result.core_pairs = sum_of_visible(length, options);
  result.local_pairs = result.full_pairs - options.group_size * result.core_pairs;
  result.pairs = result.core_pairs + result.local_pairs;
  const std::int64_t flops_of_pair = 4 * shape.head_dim * shape.heads * shape.layers;
  result.flops = flops_of_pair * result.pairs;
  result.full_flops = flops_of_pair * result.full_pairs;
  const std::int64_t core = num_groups(length, options);
  const std::int64_t raw = length - options.group_size * num_visible(length, options);
  result.cache_vectors = core + raw;
  const bool is_shared = options.weights_per == WeightsPer::kKvHead;
  const std::int64_t core_heads = is_shared ? shape.kv_heads : shape.heads;
  const std::int64_t head_bytes = 2 * shape.layers * shape.head_dim * shape.bytes_per_element;
  result.cache_bytes = head_bytes * (core_heads * core + shape.kv_heads * raw);
  result.full_cache_bytes = head_bytes * shape.kv_heads * length;
  return result;
}

}  // namespace paperlab::cca
