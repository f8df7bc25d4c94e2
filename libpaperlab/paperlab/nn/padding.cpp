#include <ATen/ops/argsort.h>
#include <ATen/ops/gather.h>
#include <c10/util/Exception.h>

#include "paperlab/nn/padding_internal.h"

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
  return visible.all().item<bool>() ? at::Tensor() : visible;
}

bool is_sorted(const at::Tensor& visible) {
  const std::int64_t length = visible.size(1);
  return length == 1 ||
         visible.narrow(1, 0, length - 1).le(visible.narrow(1, 1, length - 1)).all().item<bool>();
}

}  // namespace

void check_tokens(const char* function, const at::Tensor& tokens, std::int64_t vocab_size) {
  TORCH_CHECK_VALUE(tokens.defined() && tokens.dim() == 2, function,
                    ": tokens must be [B, T], got ", tokens.sizes());
  TORCH_CHECK_TYPE(tokens.scalar_type() == at::kLong, function, ": tokens must be int64, got ",
                   tokens.scalar_type());
  if (tokens.numel() == 0) {
    return;
  }
  const auto least = tokens.min().item<std::int64_t>();
  const auto most = tokens.max().item<std::int64_t>();
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
