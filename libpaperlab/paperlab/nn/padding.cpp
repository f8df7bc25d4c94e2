#include <ATen/ops/aminmax.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>

#include <utility>

#include "paperlab/nn/padding_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

// [B, T] bool, or not defined where every token counts.
at::Tensor visible_tokens(const at::Tensor& tokens, const at::Tensor& attention_mask) {
  if (!attention_mask.defined()) {
    return {};
  }
  TORCH_CHECK_VALUE(attention_mask.sizes() == tokens.sizes(),
                    "forward: attention_mask must be of the shape of tokens ", tokens.sizes(),
                    ", got ", attention_mask.sizes());
  const at::Tensor visible = attention_mask.to(tokens.device()).ne(0);
  const bool hides = !ops::checks::has_memory(visible) || !visible.all().item<bool>();
  return hides ? visible : at::Tensor();
}

bool is_sorted(const at::Tensor& visible) {
  if (!ops::checks::has_memory(visible)) {
    return false;
  }
  const std::int64_t length = visible.size(1);
  return length == 1 ||
         visible.narrow(1, 0, length - 1).le(visible.narrow(1, 1, length - 1)).all().item<bool>();
}

// The least and the largest of x; a device is waited for once.
std::pair<std::int64_t, std::int64_t> extremes_of(const at::Tensor& x) {
  const auto [least, most] = at::aminmax(x);
  if (x.is_cpu()) {
    return {least.item<std::int64_t>(), most.item<std::int64_t>()};
  }
  const at::Tensor both = at::stack({least, most}).cpu();
  return {both[0].item<std::int64_t>(), both[1].item<std::int64_t>()};
}

}  // namespace

void check_tokens(const char* function, const at::Tensor& tokens, std::int64_t vocab_size,
                  bool checks_ids) {
  TORCH_CHECK_VALUE(tokens.defined() && tokens.dim() == 2, function,
                    ": tokens must be [B, T], got ", tokens.sizes());
  TORCH_CHECK_TYPE(tokens.scalar_type() == at::kLong, function, ": tokens must be int64, got ",
                   tokens.scalar_type());
  if (!checks_ids || tokens.numel() == 0 || !ops::checks::has_memory(tokens)) {
    return;
  }
  const auto [least, most] = extremes_of(tokens);
  TORCH_CHECK_VALUE(least >= 0 && most < vocab_size, function, ": tokens must be in 0..",
                    vocab_size - 1, " (vocab_size ", vocab_size, "), got token ",
                    least < 0 ? least : most);
}

Padding left_padding(const at::Tensor& tokens, const at::Tensor& attention_mask) {
  const at::Tensor visible = visible_tokens(tokens, attention_mask);
  if (!visible.defined()) {
    return {tokens, {}, {}};
  }
  const at::Tensor key_start = visible.logical_not().sum(1);
  if (is_sorted(visible)) {
    return {tokens, key_start, {}};
  }
  const at::Tensor order = at::argsort(visible.to(at::kByte), /*stable=*/true, 1, false);
  return {at::gather(tokens, 1, order), key_start, at::argsort(order, /*stable=*/true, 1, false)};
}

at::Tensor unpad(const at::Tensor& state, const Padding& padding) {
  if (!padding.inverse.defined()) {
    return state;
  }
  return at::gather(state, 1, padding.inverse.unsqueeze(2).expand(state.sizes()));
}

void check_cache(const at::Tensor& tokens, const at::Tensor& attention_mask, const Cache& cache) {
  TORCH_CHECK_VALUE(tokens.size(0) == cache.batch_size,
                    "forward: tokens must have the cache's batch size ", cache.batch_size, ", got ",
                    tokens.size(0));
  TORCH_CHECK_VALUE(cache.length + tokens.size(1) <= cache.max_length,
                    "forward: tokens must fit into the cache (", cache.max_length, ", of which ",
                    cache.length, " are taken), got ", tokens.size(1));
  const at::Tensor visible = visible_tokens(tokens, attention_mask);
  TORCH_CHECK_VALUE(!visible.defined() || cache.length == 0,
                    "forward: attention_mask may hide tokens in a cache's first call alone");
  TORCH_CHECK_VALUE(!visible.defined() || is_sorted(visible),
                    "forward: attention_mask must hide tokens on the left alone where there is "
                    "a cache");
}

}  // namespace paperlab::nn
