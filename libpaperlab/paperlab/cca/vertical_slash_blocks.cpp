#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "paperlab/cca/vertical_slash_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::cca::vertical_slash {
namespace {

// Copies rows list[0..count - 1] of `row` bytes, neighbours at a time.
void copy_rows(const char* from, const std::int64_t* list, std::int64_t count, std::int64_t row,
               char* to) {
  for (std::int64_t s = 0; s < count;) {
    std::int64_t run = 1;
    while (s + run < count && list[s + run] == list[s] + run) {
      ++run;
    }
    std::memcpy(to + s * row, from + list[s] * row, static_cast<std::size_t>(run * row));
    s += run;
  }
}

// Adds gradients [n, 1, width, D] to the rows of total [B, G, T, D] from which they were gathered;
// heads of a key head one after the other.
template <class T>
void add_rows(const at::Tensor& gradients, const Block& block, std::int64_t first,
              std::int64_t heads, const at::Tensor& total) {
  const std::int64_t group = heads / total.size(1);
  const std::int64_t width = total.size(3);
  const std::int64_t count = gradients.size(0);
  const std::int64_t first_unit = first / group;
  const at::Tensor dense = gradients.contiguous();
  const T* from = dense.const_data_ptr<T>();
  T* to = total.mutable_data_ptr<T>();
  const auto* tokens = block.tokens.const_data_ptr<std::int64_t>();
  const auto* start = block.start.const_data_ptr<std::int64_t>();
  const std::int64_t units = (first + count - 1) / group - first_unit + 1;
  parallel_for(ops::torch_executor(), units, [&](std::int64_t unit, int) {
    const std::int64_t key_head = first_unit + unit;
    const std::int64_t begin = std::max(key_head * group - first, std::int64_t{0});
    const std::int64_t end = std::min((key_head + 1) * group - first, count);
    for (std::int64_t n = begin; n < end; ++n) {
      for (std::int64_t s = start[n]; s < block.width; ++s) {
        const T* x = from + (n * block.width + s) * width;
        T* sum = to + (key_head * total.size(2) + tokens[n * block.width + s]) * width;
        for (std::int64_t d = 0; d < width; ++d) {
          sum[d] += x[d];
        }
      }
    }
  });
}

}  // namespace

Block block_of(const std::vector<PastTokens>& past, std::int64_t first, std::int64_t count,
               std::int64_t begin, std::int64_t length) {
  Block block{begin, std::min(kBlock, length - begin), 0, at::empty({count}, at::kLong), {}};
  std::vector<std::vector<std::int64_t>> lists;  // quick beside the block's attention
  for (std::int64_t n = first; n < first + count; ++n) {
    lists.push_back(past[static_cast<std::size_t>(n)].of_block(begin));
  }
  std::size_t most = 0;
  for (const auto& list : lists) {
    most = std::max(most, list.size());
  }
  block.width = static_cast<std::int64_t>(most) + block.size;
  block.tokens = at::zeros({count, block.width}, at::kLong);
  auto* tokens = block.tokens.mutable_data_ptr<std::int64_t>();
  auto* start = block.start.mutable_data_ptr<std::int64_t>();
  for (const auto& list : lists) {
    *start = static_cast<std::int64_t>(most - list.size());
    std::copy(list.begin(), list.end(), tokens + *start);
    for (std::int64_t t = 0; t < block.size; ++t) {
      tokens[static_cast<std::int64_t>(most) + t] = begin + t;
    }
    ++start;
    tokens += block.width;
  }
  return block;
}

Memory gathered(const Memory& from, const Block& block, std::int64_t first, std::int64_t heads,
                const Memory& memory) {
  constexpr std::int64_t kParts = 4;  // of a head's keys, and as many of its values
  const std::int64_t group = heads / from.key.size(1);
  const std::int64_t length = from.key.size(2);
  const std::int64_t room = memory.key.size(2);
  const std::int64_t row = from.key.size(3) * from.key.element_size();
  const auto* tokens = block.tokens.const_data_ptr<std::int64_t>();
  const auto* start = block.start.const_data_ptr<std::int64_t>();
  const std::int64_t count = block.start.size(0);
  parallel_for(ops::torch_executor(), 2 * count * kParts, [&](std::int64_t task, int) {
    const bool is_key = task < count * kParts;
    const std::int64_t n = task / kParts % count;
    const std::int64_t part = task % kParts;
    const std::int64_t begin = start[n] + (block.width - start[n]) * part / kParts;
    const std::int64_t end = start[n] + (block.width - start[n]) * (part + 1) / kParts;
    const auto* source =
        static_cast<const char*>((is_key ? from.key : from.value).const_data_ptr());
    auto* to = static_cast<char*>((is_key ? memory.key : memory.value).mutable_data_ptr());
    copy_rows(source + (first + n) / group * length * row, tokens + n * block.width + begin,
              end - begin, row, to + (n * room + begin) * row);
  });
  return {memory.key.narrow(2, 0, block.width), memory.value.narrow(2, 0, block.width)};
}

void scatter_add(const at::Tensor& gradients, const Block& block, std::int64_t first,
                 std::int64_t heads, const at::Tensor& total) {
  const at::Tensor x = gradients.to(total.scalar_type());
  if (total.scalar_type() == at::kDouble) {
    add_rows<double>(x, block, first, heads, total);
  } else {
    add_rows<float>(x, block, first, heads, total);
  }
}

}  // namespace paperlab::cca::vertical_slash
