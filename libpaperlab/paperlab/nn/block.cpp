#include "paperlab/nn/block.h"

#include <ATen/ops/mul.h>

#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/activation.h"
#include "paperlab/ops/swiglu.h"

namespace paperlab::nn {
namespace {

// [B, T, heads D] -> [B, T, heads, D].
at::Tensor split_heads(const at::Tensor& x, std::int64_t head_dim) {
  return x.view({x.size(0), x.size(1), x.size(2) / head_dim, head_dim});
}

// Queries, keys and values [B, T, H, D] of the one product.
void split_fused(const DecoderConfig& config, const at::Tensor& product, AttentionInput& input) {
  const bool is_heads_first = config.qkv_order == QkvOrder::kHeadsFirst;
  const std::int64_t heads = config.num_heads;
  const at::Tensor parts =
      product.view({product.size(0), product.size(1), is_heads_first ? heads : 3,
                    is_heads_first ? 3 : heads, config.head_dim});
  const std::int64_t part_dim = is_heads_first ? 3 : 2;
  input.query = parts.select(part_dim, 0);
  input.key = parts.select(part_dim, 1);
  input.value = parts.select(part_dim, 2);
}

at::Tensor normalized(const std::shared_ptr<const NormLayer>& norm, const at::Tensor& x) {
  return norm == nullptr ? x : norm->forward(x);
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
    split_fused(config, query_key_value(x.query, hooks), input);
  } else {
    input.query = split_heads(query(x.query, hooks), config.head_dim);
    input.key = split_heads(key(x.key, hooks), config.head_dim);
    input.value = split_heads(value(x.value, hooks), config.head_dim);
  }
  if (query_norm != nullptr) {
    input.query = query_norm->forward(input.query);
    input.key = key_norm->forward(input.key);
  }
  if (!config.attention_scales.empty()) {
    const double scale = config.attention_scales[static_cast<std::size_t>(input.layer)];
    input.query = at::mul(input.query, scale);
  }
}

at::Tensor Block::attend(const DecoderConfig& config, const LinearHooks& hooks, AttentionInput call,
                         const AttentionStreams& x, Stream& stream, LayerCache* cache) const {
  project(config, hooks, x, call);
  stream.route_heads(call.layer, call);
  const at::Tensor heads = attention->forward(call, cache);
  return normalized(
      post_attention_norm,
      out(heads.reshape({heads.size(0), heads.size(1), heads.size(2) * heads.size(3)}), hooks));
}

at::Tensor Block::feed_forward(const DecoderConfig& config, const LinearHooks& hooks,
                               const at::Tensor& x) const {
  return normalized(post_ffn_norm, down(hidden_layer(config, hooks, x), hooks));
}

at::Tensor Block::hidden_layer(const DecoderConfig& config, const LinearHooks& hooks,
                               const at::Tensor& x) const {
  if (!config.has_gate) {
    return activate(config.activation, up(x, hooks));
  }
  const at::Tensor gated = gate(x, hooks);
  const at::Tensor plain = up(x, hooks);
  if (config.activation == Activation::kSilu) {
    return ops::swiglu(gated, plain);
  }
  return at::mul(activate(config.activation, gated), plain);
}

std::shared_ptr<const NormLayer> put_norms_after(std::vector<Block>& blocks) {
  std::shared_ptr<const NormLayer> before = std::make_shared<NoNorm>();
  for (Block& block : blocks) {
    auto after_attention = std::make_shared<NormAfter>(std::move(block.attention_norm));
    auto after_ffn = std::make_shared<NormAfter>(std::move(block.ffn_norm));
    block.attention_norm = std::move(before);
    block.ffn_norm = std::move(after_attention);
    before = std::move(after_ffn);
  }
  return before;
}

}  // namespace paperlab::nn
