#include <algorithm>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "nn::Decoder";

void check_config(const DecoderConfig& config) {
  const auto check = [](bool holds, const char* required, std::int64_t got) {
    require<ValueError>(holds, kFunction, required, std::to_string(got));
  };
  check(config.vocab_size >= 1, "vocab_size >= 1", config.vocab_size);
  check(config.num_layers >= 1, "num_layers >= 1", config.num_layers);
  check(config.d_model >= 1, "d_model >= 1", config.d_model);
  check(config.num_heads >= 1, "num_heads >= 1", config.num_heads);
  check(config.num_kv_heads >= 1 && config.num_heads % config.num_kv_heads == 0,
        "num_kv_heads that divides num_heads", config.num_kv_heads);
  check(config.head_dim >= 1 && config.head_dim <= 256, "head_dim in 1..256", config.head_dim);
  check(config.d_ff >= 1, "d_ff >= 1", config.d_ff);
  check(config.max_positions >= 1, "max_positions >= 1", config.max_positions);
  const std::int64_t rotary_dim = config.rope.rotary_dim;
  check(rotary_dim >= 0 && rotary_dim <= config.head_dim && rotary_dim % 2 == 0,
        "an even rotary_dim of at most head_dim", rotary_dim);
  const auto num_windows = static_cast<std::int64_t>(config.windows.size());
  check(num_windows == 0 || num_windows == config.num_layers, "a window for each layer",
        num_windows);
  const auto num_widths = static_cast<std::int64_t>(config.ffn_dims.size());
  check(num_widths == 0 || num_widths == config.num_layers, "a width of ffn_dims for each layer",
        num_widths);
  for (const std::int64_t width : config.ffn_dims) {
    check(width >= 1, "ffn_dims >= 1", width);
  }
  check(!config.has_fused_qkv || config.num_heads == config.num_kv_heads,
        "num_kv_heads = num_heads where q, k and v are one matrix", config.num_kv_heads);
  const auto num_scales = static_cast<std::int64_t>(config.attention_scales.size());
  check(num_scales == 0 || num_scales == config.num_layers, "a scale for each layer", num_scales);
  check(config.position_offset >= 0, "position_offset >= 0", config.position_offset);
  check(config.embed_dim >= 0, "embed_dim >= 0", config.embed_dim);
  const bool is_after = config.is_norm_after;
  check(!is_after || !(config.is_parallel || config.has_post_norms || config.has_final_norm),
        "no parallel block, post-norms or final norm where norms stand after the sum", is_after);
  check(config.has_norm_weights || config.norm == Norm::kLayer,
        "norms with weights unless LayerNorm", config.has_norm_weights);
}

std::vector<ParameterSpec> beginning_with_embedding(std::vector<ParameterSpec> specs) {
  require<ValueError>(!specs.empty() && specs.front().role == Role::kEmbed, kFunction,
                      "specs that begin with the embedding", "others");
  return specs;
}

DecoderConfig checked(DecoderConfig config) {
  check_config(config);
  return config;
}

}  // namespace

Decoder::Decoder(DecoderConfig config, std::vector<ParameterSpec> specs,
                 std::vector<at::Tensor> values, MakeConnection make)
    : config_(checked(std::move(config))),
      parameters_(kFunction, beginning_with_embedding(std::move(specs)), std::move(values)),
      make_connection_(std::move(make)) {
  if (config_.rope.rotary_dim > 0) {
    rotary_ = std::make_shared<Rotary>(config_.rope);
  }
  if (config_.window_rope && !config_.windows.empty()) {
    window_rotary_ = std::make_shared<Rotary>(*config_.window_rope);
  }
  make_blocks();
  make_connection();
}

void Decoder::make_connection() {
  if (make_connection_ == nullptr) {
    connection_ = std::make_shared<ResidualConnection>();
    return;
  }
  connection_ =
      make_connection_([&](const std::string& name) { return parameters_.named(name).value; });
}

std::shared_ptr<Decoder> Decoder::with_values(std::vector<at::Tensor> values) const {
  std::vector<ParameterSpec> specs;
  specs.reserve(parameters().size());
  for (const Parameter& parameter : parameters()) {
    specs.push_back(parameter.spec);
  }
  return std::make_shared<Decoder>(config_, std::move(specs), std::move(values), make_connection_);
}

void Decoder::make_blocks() {
  const auto attention = std::make_shared<FullAttention>();
  blocks_.resize(static_cast<std::size_t>(config_.num_layers));
  for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
    Block& block = blocks_[static_cast<std::size_t>(layer)];
    block.attention_norm = stream_norm(Role::kAttentionNorm, layer);
    block.ffn_norm = stream_norm(Role::kFfnNorm, layer);
    block.post_attention_norm = norm_of(Role::kPostAttentionNorm, layer);
    block.post_ffn_norm = norm_of(Role::kPostFfnNorm, layer);
    block.query_norm = norm_of(Role::kQueryNorm, layer);
    block.key_norm = norm_of(Role::kKeyNorm, layer);
    block.query = parameters_.linear(Role::kQuery, layer);
    block.key = parameters_.linear(Role::kKey, layer);
    block.value = parameters_.linear(Role::kValue, layer);
    block.query_key_value = parameters_.linear(Role::kQueryKeyValue, layer);
    block.out = parameters_.linear(Role::kOut, layer);
    block.gate = parameters_.linear(Role::kGate, layer);
    block.up = parameters_.linear(Role::kUp, layer);
    block.down = parameters_.linear(Role::kDown, layer);
    block.attention = attention;
  }
  final_norm_ =
      config_.has_final_norm ? stream_norm(Role::kFinalNorm, -1) : std::make_shared<const NoNorm>();
  if (config_.is_norm_after) {
    final_norm_ = put_norms_after(blocks_);
  }
  position_table_ = parameters_.find(Role::kPositionEmbed);
  project_in_ = parameters_.linear(Role::kProjectIn, -1);
  project_out_ = parameters_.linear(Role::kProjectOut, -1);
  head_ = parameters_.linear(config_.has_tied_head ? Role::kEmbed : Role::kHead, -1);
  if (config_.has_tied_head) {
    head_.name = "lm_head";
  }
}

// One that every decoder has.
std::shared_ptr<const NormLayer> Decoder::stream_norm(Role role, std::int64_t layer) const {
  if (!config_.has_norm_weights) {
    return std::make_shared<LayerNorm>(nullptr, nullptr, config_.norm_eps);
  }
  return norm_of(role, layer);
}

std::shared_ptr<const NormLayer> Decoder::norm_of(Role role, std::int64_t layer) const {
  auto weight = parameters_.find(role, layer);
  if (weight == nullptr) {
    return nullptr;
  }
  const bool is_of_head = role == Role::kQueryNorm || role == Role::kKeyNorm;
  if (config_.norm == Norm::kRms || is_of_head) {
    return std::make_shared<RmsNorm>(std::move(weight), config_.norm_eps, config_.has_norm_offset);
  }
  return parameters_.layer_norm(role, layer, config_.norm_eps);
}

const Decoder::Parameter* Decoder::find_parameter(Role role, std::int64_t layer,
                                                  bool is_bias) const {
  const bool is_tied = role == Role::kHead && config_.has_tied_head;
  return parameters_.entry(is_tied ? Role::kEmbed : role, layer, is_bias);
}

const at::Tensor* Decoder::find(Role role, std::int64_t layer, bool is_bias) const {
  const Parameter* parameter = find_parameter(role, layer, is_bias);
  return parameter == nullptr ? nullptr : parameter->value.get();
}

Block& Decoder::block(std::int64_t layer) {
  require<ValueError>(layer >= 0 && layer < config_.num_layers, kFunction,
                      "a layer in 0.." + std::to_string(config_.num_layers - 1),
                      std::to_string(layer));
  return blocks_[static_cast<std::size_t>(layer)];
}

const DenseLinear* Decoder::plain_head() const {
  const bool is_plain = hooks_.empty() && config_.logit_softcap == 0.0;
  return is_plain ? dynamic_cast<const DenseLinear*>(head_.layer.get()) : nullptr;
}

std::vector<LinearSlot*> Decoder::linears() {
  std::vector<LinearSlot*> slots;
  const auto add = [&](LinearSlot& slot) {
    if (slot.layer != nullptr) {
      slots.push_back(&slot);
    }
  };
  add(project_in_);
  for (Block& block : blocks_) {
    const std::vector<LinearSlot*> of_block = block.linears(config_);
    slots.insert(slots.end(), of_block.begin(), of_block.end());
  }
  add(project_out_);
  slots.push_back(&head_);
  return slots;
}

LinearSlot& Decoder::linear(const std::string& name) {
  const std::vector<LinearSlot*> slots = linears();
  const auto found = std::find_if(slots.begin(), slots.end(),
                                  [&](const LinearSlot* slot) { return slot->name == name; });
  require<ValueError>(found != slots.end(), kFunction, "the name of a linear layer", name);
  return **found;
}

void Decoder::set_connection(std::shared_ptr<const Connection> connection) {
  require<ValueError>(connection != nullptr, kFunction, "a connection", "null");
  connection_ = std::move(connection);
}

std::int64_t Decoder::add_linear_hook(LinearHook hook) {
  hooks_.emplace(num_hooks_, std::move(hook));
  return num_hooks_++;
}

void Decoder::remove_linear_hook(std::int64_t id) {
  require<ValueError>(hooks_.erase(id) == 1, kFunction, "the number of a hook", std::to_string(id));
}

}  // namespace paperlab::nn
