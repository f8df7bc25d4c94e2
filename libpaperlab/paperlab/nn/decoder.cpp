#include "paperlab/nn/decoder.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/padding_internal.h"
#include "paperlab/nn/widened.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "nn::Decoder";
constexpr char kForward[] = "forward";

template <class T>
std::string text_of(const T& value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

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
}

void check_value(const ParameterSpec& spec, const at::Tensor& value) {
  require<ValueError>(value.defined(), kFunction, "a tensor for " + spec.name, "none");
  require<ShapeError>(value.sizes() == at::IntArrayRef(spec.shape), kFunction,
                      spec.name + " of shape " + text_of(at::IntArrayRef(spec.shape)),
                      text_of(value.sizes()));
  const at::ScalarType dtype = value.scalar_type();
  require<DTypeError>(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      kFunction, spec.name + " in float32, float64, bfloat16 or float16", c10::toString(dtype));
}

// Shapes, dtypes and devices change in place: Module.to(), tensor.data = ... Forward gradients
// would be lost below autograd.
void check_parameters(const std::vector<Decoder::Parameter>& parameters) {
  const at::Tensor& first = *parameters.front().value;
  TORCH_CHECK_VALUE(!first.is_meta(), kForward, ": parameters must have data, got meta tensors");
  for (const auto& [spec, value] : parameters) {
    ops::refuse_forward_gradient(kForward, *value);
    TORCH_CHECK_VALUE(value->sizes() == at::IntArrayRef(spec.shape), kForward, ": ", spec.name,
                      " must be of shape ", at::IntArrayRef(spec.shape), ", got ", value->sizes());
    TORCH_CHECK_TYPE(
        value->scalar_type() == first.scalar_type() && value->device() == first.device(), kForward,
        ": ", spec.name, " must be ", first.scalar_type(), " on ", first.device(),
        " as the other parameters, got ", value->scalar_type(), " on ", value->device());
  }
}

// Of the row with the least padding.
std::int64_t least_of(const at::Tensor& key_start) {
  const bool is_known = key_start.defined() && ops::checks::has_memory(key_start);
  return is_known ? key_start.min().item<std::int64_t>() : 0;
}

// Where nothing is recorded, operators need not ask: a decoded token is some 500 of them.
class NoRecording {
 public:
  explicit NoRecording(bool is_wanted) {
    if (is_wanted || !at::GradMode::is_enabled()) {
      no_grad_.emplace();
      below_autograd_.emplace();
    }
  }

 private:
  std::optional<at::NoGradGuard> no_grad_;
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd_;
};

}  // namespace

std::int64_t Cache::num_bytes() const {
  std::int64_t sum = 0;
  for (const auto& layer : layers) {
    sum += layer->num_bytes();
  }
  return sum;
}

Decoder::Decoder(DecoderConfig config, std::vector<ParameterSpec> specs,
                 std::vector<at::Tensor> values, MakeConnection make)
    : config_(std::move(config)), make_connection_(std::move(make)) {
  check_config(config_);
  require<ValueError>(!specs.empty() && specs.front().role == Role::kEmbed, kFunction,
                      "specs that begin with the embedding", "others");
  require<ValueError>(specs.size() == values.size(), kFunction,
                      std::to_string(specs.size()) + " parameters", std::to_string(values.size()));
  for (std::size_t i = 0; i < specs.size(); ++i) {
    check_value(specs[i], values[i]);
    parameters_.push_back(
        {std::move(specs[i]), std::make_shared<at::Tensor>(std::move(values[i]))});
  }
  if (config_.rope.rotary_dim > 0) {
    rotary_ = std::make_shared<Rotary>(config_.rope);
  }
  make_blocks();
  make_connection();
}

void Decoder::make_connection() {
  if (make_connection_ == nullptr) {
    connection_ = std::make_shared<ResidualConnection>();
    return;
  }
  connection_ = make_connection_([&](const std::string& name) { return named(name).value; });
}

std::shared_ptr<Decoder> Decoder::with_values(std::vector<at::Tensor> values) const {
  std::vector<ParameterSpec> specs;
  for (const Parameter& parameter : parameters_) {
    specs.push_back(parameter.spec);
  }
  return std::make_shared<Decoder>(config_, std::move(specs), std::move(values), make_connection_);
}

void Decoder::make_blocks() {
  const auto attention = std::make_shared<FullAttention>();
  blocks_.resize(static_cast<std::size_t>(config_.num_layers));
  for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
    Block& block = blocks_[static_cast<std::size_t>(layer)];
    block.attention_norm = norm_of(Role::kAttentionNorm, layer);
    block.ffn_norm = norm_of(Role::kFfnNorm, layer);
    block.query_norm = norm_of(Role::kQueryNorm, layer);
    block.key_norm = norm_of(Role::kKeyNorm, layer);
    block.query = linear_of(Role::kQuery, layer);
    block.key = linear_of(Role::kKey, layer);
    block.value = linear_of(Role::kValue, layer);
    block.query_key_value = linear_of(Role::kQueryKeyValue, layer);
    block.out = linear_of(Role::kOut, layer);
    block.gate = linear_of(Role::kGate, layer);
    block.up = linear_of(Role::kUp, layer);
    block.down = linear_of(Role::kDown, layer);
    block.attention = attention;
  }
  final_norm_ = norm_of(Role::kFinalNorm, -1);
  head_ = linear_of(config_.has_tied_head ? Role::kEmbed : Role::kHead, -1);
  if (config_.has_tied_head) {
    head_.name = "lm_head";
  }
}

std::shared_ptr<at::Tensor> Decoder::value(Role role, std::int64_t layer, bool is_bias) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(), [&](const auto& p) {
    return p.spec.role == role && p.spec.layer == layer && p.spec.is_bias == is_bias;
  });
  return found == parameters_.end() ? nullptr : found->value;
}

LinearSlot Decoder::linear_of(Role role, std::int64_t layer) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(), [&](const auto& p) {
    return p.spec.role == role && p.spec.layer == layer && !p.spec.is_bias;
  });
  if (found == parameters_.end()) {
    return {};
  }
  const std::string& name = found->spec.name;
  return {name.substr(0, name.rfind('.')),
          std::make_shared<DenseLinear>(found->value, value(role, layer, true))};
}

std::shared_ptr<const NormLayer> Decoder::norm_of(Role role, std::int64_t layer) const {
  auto weight = value(role, layer, false);
  if (weight == nullptr) {
    return nullptr;
  }
  const bool is_of_head = role == Role::kQueryNorm || role == Role::kKeyNorm;
  if (config_.norm == Norm::kRms || is_of_head) {
    return std::make_shared<RmsNorm>(std::move(weight), config_.norm_eps);
  }
  return std::make_shared<LayerNorm>(std::move(weight), value(role, layer, true), config_.norm_eps);
}

const Decoder::Parameter& Decoder::named(const std::string& name) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [&](const auto& p) { return p.spec.name == name; });
  require<ValueError>(found != parameters_.end(), kFunction, "the name of a parameter", name);
  return *found;
}

void Decoder::set_parameter(const std::string& name, const at::Tensor& value) {
  const Parameter& parameter = named(name);
  check_value(parameter.spec, value);
  *parameter.value = value;
}

const at::Tensor* Decoder::find(Role role, std::int64_t layer, bool is_bias) const {
  const bool is_tied = role == Role::kHead && config_.has_tied_head;
  return value(is_tied ? Role::kEmbed : role, layer, is_bias).get();
}

Block& Decoder::block(std::int64_t layer) {
  require<ValueError>(layer >= 0 && layer < config_.num_layers, kFunction,
                      "a layer in 0.." + std::to_string(config_.num_layers - 1),
                      std::to_string(layer));
  return blocks_[static_cast<std::size_t>(layer)];
}

const DenseLinear* Decoder::plain_head() const {
  return hooks_.empty() ? dynamic_cast<const DenseLinear*>(head_.layer.get()) : nullptr;
}

void Decoder::to(const at::Device& device) {
  for (const Parameter& parameter : parameters_) {
    at::Tensor& value = *parameter.value;
    if (value.device() != device) {
      value = value.detach().to(device).set_requires_grad(value.requires_grad());
    }
  }
}

std::vector<LinearSlot*> Decoder::linears() {
  std::vector<LinearSlot*> slots;
  for (Block& block : blocks_) {
    const std::vector<LinearSlot*> of_block = block.linears(config_);
    slots.insert(slots.end(), of_block.begin(), of_block.end());
  }
  slots.push_back(&head_);
  return slots;
}

LinearSlot& Decoder::linear(const std::string& name) {
  for (LinearSlot* slot : linears()) {
    if (slot->name == name) {
      return *slot;
    }
  }
  throw ValueError(std::string(kFunction) + ": the name of a linear layer, got " + name);
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

std::unique_ptr<Cache> Decoder::new_cache(std::int64_t batch_size, std::int64_t max_length) const {
  require<ValueError>(batch_size >= 1 && max_length >= 1, "nn::Decoder::new_cache",
                      "batch_size and max_length >= 1",
                      std::to_string(batch_size) + " and " + std::to_string(max_length));
  auto cache = std::make_unique<Cache>();
  cache->batch_size = batch_size;
  cache->max_length = max_length;
  cache->model = identity_;
  at::TensorOptions options = parameters_.front().value->options().requires_grad(false);
  if (options.dtype() == at::kHalf) {
    options = options.dtype(at::kFloat);
  }
  for (const Block& block : blocks_) {
    cache->layers.push_back(block.attention->new_cache(
        {batch_size, config_.num_kv_heads, config_.head_dim, max_length, options}));
  }
  return cache;
}

// Of the tokens' positions, on the parameters' device.
RotaryTable Decoder::rotations(const at::Tensor& tokens, const at::Tensor& key_start,
                               std::int64_t num_past, std::int64_t seq_len) const {
  const at::Tensor& parameter = *parameters_.front().value;
  const at::ScalarType dtype = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t length = tokens.size(1);
  if (!key_start.defined()) {
    return rotary_->range(num_past, length, dtype, seq_len, parameter.device());
  }
  const at::Tensor at = at::arange(num_past, num_past + length, tokens.options())
                            .sub(key_start.unsqueeze(1))
                            .clamp_min(0);
  const bool has_values = at.is_cpu() && ops::checks::has_memory(at);
  return has_values ? rotary_->at(at, dtype, seq_len) : rotary_->rows(at, seq_len, dtype);
}

// What all blocks share: rotations of the tokens' positions, and which keys are padding.
AttentionInput Decoder::positions(const at::Tensor& tokens, const at::Tensor& key_start,
                                  std::int64_t num_past, std::int64_t num_padding) const {
  const std::int64_t seq_len = num_past + tokens.size(1) - num_padding;
  TORCH_CHECK_VALUE(seq_len <= config_.max_positions, kForward, ": tokens must be at most ",
                    config_.max_positions, " with those in the cache (max_positions), got ",
                    seq_len);
  AttentionInput input;
  input.key_start = key_start;
  input.num_past = num_past;
  if (rotary_ != nullptr) {
    RotaryTable table = rotations(tokens, key_start, num_past, seq_len);
    input.cos = std::move(table.cos);
    input.sin = std::move(table.sin);
  }
  return input;
}

at::Tensor Decoder::run(const at::Tensor& tokens, const at::Tensor& key_start,
                        std::int64_t num_padding, Cache* cache) const {
  AttentionInput call =
      positions(tokens, key_start, cache == nullptr ? 0 : cache->length, num_padding);
  const at::Tensor& embedding = *parameters_.front().value;
  const std::unique_ptr<Stream> stream =
      connection_->start(widened(at::embedding(embedding, tokens)));
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    call.layer = static_cast<std::int64_t>(layer);
    call.window = config_.windows.empty() ? 0 : config_.windows[layer];
    blocks_[layer].forward(config_, hooks_, call, *stream,
                           cache == nullptr ? nullptr : cache->layers[layer].get());
  }
  return stream->finish(*final_norm_);
}

at::Tensor Decoder::hidden(const at::Tensor& tokens, const ForwardOptions& options) const {
  const NoRecording no_recording(options.cache != nullptr);
  check_parameters(parameters_);
  check_tokens(kForward, tokens, config_.vocab_size, options.checks_ids);
  Cache* cache = options.cache;
  if (cache == nullptr) {
    const Padding padding = left_padding(tokens, options.attention_mask);
    const at::Tensor& start = padding.key_start;
    return unpad(run(padding.tokens, start, least_of(start), nullptr), padding);
  }
  check_cache(tokens, options.attention_mask, *cache);
  TORCH_CHECK_VALUE(cache->model == identity_, kForward,
                    ": cache must be of this model's new_cache, got that of another one");
  const bool is_first = cache->length == 0;
  const at::Tensor key_start =
      is_first ? left_padding(tokens, options.attention_mask).key_start : cache->key_start;
  const std::int64_t num_padding = is_first ? least_of(key_start) : cache->num_padding;
  at::Tensor state = run(tokens, key_start, num_padding, cache);
  cache->key_start = key_start;
  cache->num_padding = num_padding;
  cache->length += tokens.size(1);
  return state;
}

at::Tensor Decoder::forward(const at::Tensor& tokens, const ForwardOptions& options) const {
  const NoRecording no_recording(options.cache != nullptr);
  TORCH_CHECK_VALUE(!options.last_only || tokens.dim() != 2 || tokens.size(1) >= 1, kForward,
                    ": tokens must be [B, T] with T >= 1 where last_only is true, got ",
                    tokens.sizes());
  at::Tensor state = hidden(tokens, options);
  if (options.last_only) {
    state = state.narrow(1, state.size(1) - 1, 1);
  }
  const at::Tensor result = logits(state);
  const at::ScalarType dtype = parameters_.front().value->scalar_type();
  return dtype == at::kHalf ? result.to(dtype) : result;
}

at::Tensor Decoder::logits(const at::Tensor& state) const { return head_(state, hooks_); }

}  // namespace paperlab::nn
