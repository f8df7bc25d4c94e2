// The same gathering from LibTorch's operations, for tensors on any device.
#include <ATen/ops/arange.h>
#include <ATen/ops/index_select.h>

#include "paperlab/cca/vertical_slash_internal.h"

namespace paperlab::cca::vertical_slash {
namespace {

// Rows of keys [B G T, D] that the block's tokens are, [n, width] int64 on the CPU; padding: B G T.
at::Tensor key_rows(const Block& block, std::int64_t first, std::int64_t heads,
                    at::IntArrayRef keys) {
  const std::int64_t group = heads / keys[1];
  const std::int64_t count = block.start.size(0);
  const at::Tensor head = at::arange(first, first + count, at::kLong).floor_divide(group);
  const at::Tensor rows = head.mul(keys[2]).unsqueeze(1).add(block.tokens);
  const at::Tensor is_padding =
      at::arange(block.width, at::kLong).unsqueeze(0).lt(block.start.unsqueeze(1));
  return rows.masked_fill(is_padding, keys[0] * keys[1] * keys[2]);
}

}  // namespace

Memory gathered_torch(const Memory& from, const Block& block, std::int64_t first,
                      std::int64_t heads) {
  const at::IntArrayRef keys = from.key.sizes();
  const at::Tensor rows = key_rows(block, first, heads, keys)
                              .clamp_max(keys[0] * keys[1] * keys[2] - 1)
                              .flatten()
                              .to(from.key.device());
  const auto gather = [&](const at::Tensor& x) {
    return at::index_select(x.flatten(0, 2), 0, rows)
        .view({block.start.size(0), 1, block.width, keys[3]});
  };
  return {gather(from.key), gather(from.value)};
}

// Heads of a key head one after the other, so that the rows of a step differ and sums have one
// order.
void scatter_add_torch(const at::Tensor& gradients, const Block& block, std::int64_t first,
                       std::int64_t heads, at::IntArrayRef keys, const at::Tensor& total) {
  const std::int64_t group = heads / keys[1];
  const at::Tensor rows = key_rows(block, first, heads, keys).to(total.device());
  const at::Tensor x = gradients.squeeze(1).to(total.scalar_type());
  for (std::int64_t member = 0; member < group; ++member) {
    const std::int64_t begin = (member - first % group + group) % group;  // heads of that remainder
    if (begin < x.size(0)) {
      const at::Tensor to = rows.slice(0, begin, x.size(0), group).flatten();
      const at::Tensor more = x.slice(0, begin, x.size(0), group).flatten(0, 1);
      total.index_copy_(0, to, at::index_select(total, 0, to).add(more));
    }
  }
}

}  // namespace paperlab::cca::vertical_slash
