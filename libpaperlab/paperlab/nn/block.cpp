#include "paperlab/nn/block.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/ops/swiglu.h"

namespace paperlab::nn {
namespace {

at::Tensor activate(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      break;
  }
  return at::silu(x);
}

// [B, T, heads D] -> [B, T, heads, D].
at::Tensor split_heads(const at::Tensor& x, std::int64_t head_dim) {
  return x.view({x.size(0), x.size(1), x.size(2) / head_dim, head_dim});
}

}  // namespace

std::vector<LinearSlot*> Block::linears(const DecoderConfig& config) {
  std::vector<LinearSlot*> slots = {&query, &key, &value};
  if (config.has_fused_qkv) {
    slots = {&query_key_value};
  }
  slots.push_back(&out);
  if (config.has_gate) {
    slots.push_back(&gate);
  }
  slots.insert(slots.end(), {&up, &down});
  return slots;
}

void Block::forward(const DecoderConfig& config, const LinearHooks& hooks,
                    const AttentionInput& call, Stream& stream, LayerCache* cache) const {
  const std::int64_t layer = call.layer;
  const AttentionStreams x = stream.read_attention(layer, *attention_norm);
  if (config.is_parallel) {
    const at::Tensor y = stream.read_ffn(layer, *ffn_norm);
    stream.write_attention(layer, attend(config, hooks, call, x, stream, cache));
    stream.write_ffn(layer, feed_forward(config, hooks, y));
    return;
  }
  stream.write_attention(layer, attend(config, hooks, call, x, stream, cache));
  stream.write_ffn(layer, feed_forward(config, hooks, stream.read_ffn(layer, *ffn_norm)));
}

void Block::project(const DecoderConfig& config, const LinearHooks& hooks,
                    const AttentionStreams& x, AttentionInput& input) const {
  if (config.has_fused_qkv) {
    require<ValueError>(x.query.is_same(x.key) && x.query.is_same(x.value), "nn::Block",
                        "one input for query, key and value where their matrix is one",
                        "different ones");
    const at::Tensor heads =
        query_key_value(x.query, hooks)
            .view({x.query.size(0), x.query.size(1), config.num_heads, 3, config.head_dim});
    input.query = heads.select(3, 0);
    input.key = heads.select(3, 1);
    input.value = heads.select(3, 2);
  } else {
    input.query = split_heads(query(x.query, hooks), config.head_dim);
    input.key = split_heads(key(x.key, hooks), config.head_dim);
    input.value = split_heads(value(x.value, hooks), config.head_dim);
  }
  if (query_norm != nullptr) {
    input.query = query_norm->forward(input.query);
    input.key = key_norm->forward(input.key);
  }
}

at::Tensor Block::attend(const DecoderConfig& config, const LinearHooks& hooks, AttentionInput call,
                         const AttentionStreams& x, Stream& stream, LayerCache* cache) const {
  project(config, hooks, x, call);
  stream.route_heads(call.layer, call);
  const at::Tensor heads = attention->forward(call, cache);
  return out(heads.reshape({heads.size(0), heads.size(1), heads.size(2) * heads.size(3)}), hooks);
}

at::Tensor Block::feed_forward(const DecoderConfig& config, const LinearHooks& hooks,
                               const at::Tensor& x) const {
  if (!config.has_gate) {
    return down(activate(config.activation, up(x, hooks)), hooks);
  }
  const at::Tensor gated = gate(x, hooks);
  const at::Tensor plain = up(x, hooks);
  if (config.activation == Activation::kSilu) {
    return down(ops::swiglu(gated, plain), hooks);
  }
  return down(at::mul(activate(config.activation, gated), plain), hooks);
}

}  // namespace paperlab::nn
