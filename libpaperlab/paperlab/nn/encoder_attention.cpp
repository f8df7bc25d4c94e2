#include "paperlab/nn/encoder_attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/gather.h>

#include "paperlab/core/error.h"
#include "paperlab/ops/attention.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

// [B, G, T, D], the keys that count first.
at::Tensor in_order(const at::Tensor& x, const at::Tensor& order) {
  if (!order.defined()) {
    return x;
  }
  return at::gather(x, 2, order.unsqueeze(1).unsqueeze(3).expand(x.sizes()));
}

}  // namespace

EncoderPass encoder_pass(const at::Tensor& attention_mask) {
  EncoderPass pass;
  if (!attention_mask.defined()) {
    return pass;
  }
  const at::Tensor visible = attention_mask.ne(0);
  const bool has_memory = ops::checks::has_memory(visible);
  if (has_memory && visible.all().item<bool>()) {
    return pass;
  }
  pass.visible = visible;
  const at::Tensor count = visible.sum(1);
  const at::Tensor first = visible.to(at::kByte).argmax(1);
  const at::Tensor place = at::arange(visible.size(1), count.options()).unsqueeze(0);
  const at::Tensor end = first.add(count);
  const at::Tensor run = place.ge(first.unsqueeze(1)).logical_and(place.lt(end.unsqueeze(1)));
  if (has_memory && run.equal(visible)) {
    pass.key_start = first;
    pass.key_end = end;
    return pass;
  }
  pass.key_order = at::argsort(visible.to(at::kByte), /*stable=*/true, 1, /*descending=*/true);
  pass.key_end = count;
  return pass;
}

at::Tensor BidirectionalAttention::forward(const AttentionInput& input,
                                           LayerCache* /*cache*/) const {
  ops::AttentionOptions options;
  options.causal = false;
  at::Tensor key = input.key.transpose(1, 2);
  at::Tensor value = input.value.transpose(1, 2);
  if (input.encoder != nullptr) {
    key = in_order(key, input.encoder->key_order);
    value = in_order(value, input.encoder->key_order);
    options.key_start = input.encoder->key_start;
    options.key_end = input.encoder->key_end;
  }
  return ops::attention(input.query.transpose(1, 2), key, value, options).out.transpose(1, 2);
}

std::unique_ptr<LayerCache> BidirectionalAttention::new_cache(const CacheShape& /*shape*/) const {
  throw UnsupportedError("nn::BidirectionalAttention: an encoder has no cache");
}

}  // namespace paperlab::nn
