#include "paperlab/nn/encoder.h"

#include <ATen/ops/add.h>
#include <c10/util/Exception.h>

#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/activation.h"
#include "paperlab/nn/encoder_parameters.h"
#include "paperlab/nn/widened.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "nn::Encoder";
constexpr char kForward[] = "forward";
constexpr std::int64_t kMaxHeadDim = 256;

}  // namespace

Encoder::Encoder(EncoderConfig config, std::vector<ParameterSpec> specs,
                 std::vector<at::Tensor> values, MakeConnection make)
    : config_(std::move(config)),
      parameters_(kFunction, std::move(specs), std::move(values)),
      make_connection_(std::move(make)) {
  require<ValueError>(config_.block.head_dim <= kMaxHeadDim, kFunction,
                      "heads of at most " + std::to_string(kMaxHeadDim) + " lanes",
                      std::to_string(config_.block.head_dim));
  require<ValueError>(!config_.has_mean_pooling || reads_pixels(config_), kFunction,
                      "mean pooling of pictures alone", "that of tokens");
  require<ValueError>(make_connection_ == nullptr || config_.is_norm_first, kFunction,
                      "norms before the sublayers where the connection is not the residual one",
                      "norms after them");
  make_blocks();
  make_head();
  if (make_connection_ == nullptr) {
    connection_ = std::make_shared<ResidualConnection>();
  } else {
    connection_ =
        make_connection_([&](const std::string& name) { return parameters_.named(name).value; });
  }
}

std::shared_ptr<Encoder> Encoder::with_values(std::vector<at::Tensor> values) const {
  std::vector<ParameterSpec> specs;
  for (const NamedParameter& parameter : parameters_.list()) {
    specs.push_back(parameter.spec);
  }
  return std::make_shared<Encoder>(config_, std::move(specs), std::move(values), make_connection_);
}

std::shared_ptr<const Attention> Encoder::attention_of(std::size_t layer) const {
  if (config_.family != EncoderFamily::kDebertaV2) {
    return std::make_shared<BidirectionalAttention>();
  }
  const PositionSlots& own = position_slots_[layer];
  const Block& block = blocks_[layer];
  const bool is_shared = config_.relative.has_shared_projections;
  return std::make_shared<DisentangledAttention>(config_, is_shared ? block.query : own.query,
                                                 is_shared ? block.key : own.key);
}

void Encoder::make_blocks() {
  const double eps = config_.block.norm_eps;
  const auto num_layers = static_cast<std::size_t>(config_.block.num_layers);
  blocks_.resize(num_layers);
  position_slots_.resize(num_layers);
  for (std::size_t i = 0; i < num_layers; ++i) {
    const auto layer = static_cast<std::int64_t>(i);
    Block& block = blocks_[i];
    block.attention_norm = parameters_.layer_norm(Role::kAttentionNorm, layer, eps);
    block.ffn_norm = parameters_.layer_norm(Role::kFfnNorm, layer, eps);
    block.query = parameters_.linear(Role::kQuery, layer);
    block.key = parameters_.linear(Role::kKey, layer);
    block.value = parameters_.linear(Role::kValue, layer);
    block.out = parameters_.linear(Role::kOut, layer);
    block.up = parameters_.linear(Role::kUp, layer);
    block.down = parameters_.linear(Role::kDown, layer);
    position_slots_[i] = {parameters_.linear(Role::kPositionQuery, layer),
                          parameters_.linear(Role::kPositionKey, layer)};
    block.attention = attention_of(i);
  }
  final_norm_ = config_.is_norm_first ? parameters_.layer_norm(Role::kFinalNorm, -1, eps)
                                      : put_norms_after(blocks_);
  embed_norm_ = parameters_.layer_norm(Role::kEmbedNorm, -1, eps);
  relative_norm_ = parameters_.layer_norm(Role::kRelativeNorm, -1, eps);
  conv_norm_ = parameters_.layer_norm(Role::kConvNorm, -1, eps);
  if (conv_norm_ != nullptr && num_layers > 1) {  // it reads the first block's state
    first_norm_ = std::exchange(blocks_[1].attention_norm, std::make_shared<NoNorm>());
  }
}

void Encoder::make_head() {
  pooler_ = parameters_.linear(Role::kPooler);
  head_dense_ = parameters_.linear(Role::kHeadDense);
  head_norm_ = parameters_.layer_norm(Role::kHeadNorm, -1, config_.block.norm_eps);
  head_ = parameters_.linear(Role::kHead);
  if (has_tied_vocabulary(config_)) {
    head_ = {vocabulary_layer_name(config_),
             std::make_shared<DenseLinear>(parameters_.find(Role::kEmbed),
                                           parameters_.find(Role::kHead, -1, true))};
  }
}

std::vector<LinearSlot*> Encoder::linears() {
  std::vector<LinearSlot*> slots;
  const auto add = [&](LinearSlot& slot) {
    if (slot.layer != nullptr) {
      slots.push_back(&slot);
    }
  };
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    const std::vector<LinearSlot*> of_block = blocks_[layer].linears(config_.block);
    for (LinearSlot* slot : of_block) {
      if (slot == &blocks_[layer].out) {
        add(position_slots_[layer].key);
        add(position_slots_[layer].query);
      }
      add(*slot);
    }
  }
  if (config_.output == EncoderOutput::kSequence) {  // else it is there, but not used
    add(pooler_);
  }
  add(head_dense_);
  add(head_);
  return slots;
}

LinearSlot& Encoder::linear(const std::string& name) {
  for (LinearSlot* slot : linears()) {
    if (slot->name == name) {
      return *slot;
    }
  }
  throw ValueError("nn::Encoder: the name of a linear layer, got " + name);
}

std::int64_t Encoder::add_linear_hook(LinearHook hook) {
  hooks_.emplace(num_hooks_, std::move(hook));
  return num_hooks_++;
}

void Encoder::remove_linear_hook(std::int64_t id) {
  require<ValueError>(hooks_.erase(id) == 1, kFunction, "the number of a hook", std::to_string(id));
}

at::Tensor Encoder::value(Role role, bool is_bias) const {
  const std::shared_ptr<at::Tensor> found = parameters_.find(role, -1, is_bias);
  return found == nullptr ? at::Tensor() : widened(*found);
}

at::Tensor Encoder::run(const at::Tensor& embeddings, const EncoderPass& pass) const {
  AttentionInput call;
  call.encoder = &pass;
  std::unique_ptr<Stream> stream = connection_->start(embeddings);
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    if (layer == 1 && first_norm_ != nullptr) {
      const at::Tensor state = stream->finish(*first_norm_);
      stream = connection_->start(convolved(embeddings, state, pass));
    }
    call.layer = static_cast<std::int64_t>(layer);
    blocks_[layer].forward(config_.block, hooks_, call, *stream, nullptr);
  }
  const at::Tensor state = stream->finish(*final_norm_);
  const bool is_first = conv_norm_ != nullptr && first_norm_ == nullptr;  // the only block's
  return is_first ? convolved(embeddings, state, pass) : state;
}

at::Tensor Encoder::states(const EncoderInput& input) const {
  parameters_.check(kForward);
  if (reads_pixels(config_)) {
    TORCH_CHECK_VALUE(!input.tokens.defined() && !input.attention_mask.defined() &&
                          !input.token_type_ids.defined(),
                      kForward, ": a model of pictures reads pixels alone");
    return run(embed_pixels(input.pixels), {});
  }
  at::Tensor embeddings = embed_tokens(input);
  EncoderPass pass =
      encoder_pass(input.attention_mask.defined() ? input.attention_mask.to(embeddings.device())
                                                  : input.attention_mask);
  pass.hooks = &hooks_;
  if (config_.hides_states && pass.visible.defined()) {
    embeddings = embeddings.mul(pass.visible.unsqueeze(2));
  }
  if (config_.relative.is_used) {
    pass.distances = value(Role::kRelativeEmbed);
    if (relative_norm_ != nullptr) {
      pass.distances = relative_norm_->forward(pass.distances);
    }
    pass.buckets =
        distance_buckets(config_.relative, embeddings.size(1), parameters_.first().device());
  }
  return run(embeddings, pass);
}

at::Tensor Encoder::head(const at::Tensor& states) const {
  switch (config_.output) {
    case EncoderOutput::kStates:
      return states;
    case EncoderOutput::kTokens:
      return head_(states, hooks_);
    case EncoderOutput::kVocabulary: {
      const at::Tensor wide = activate(config_.head_activation, head_dense_(states, hooks_));
      return head_(head_norm_->forward(wide), hooks_);
    }
    case EncoderOutput::kSequence:
      break;
  }
  TORCH_CHECK_VALUE(states.size(1) >= 1, kForward,
                    ": tokens must be [B, T] with T >= 1 where the first token is classified");
  at::Tensor pooled = config_.has_mean_pooling ? states.mean(1) : states.select(1, 0);
  if (pooler_.layer != nullptr) {
    pooled = activate(config_.pooler_activation, pooler_(pooled, hooks_));
  }
  return head_(pooled, hooks_);
}

at::Tensor Encoder::in_own_dtype(const at::Tensor& x) const {
  const at::ScalarType dtype = parameters_.first().scalar_type();
  return dtype == at::kHalf ? x.to(dtype) : x;
}

at::Tensor Encoder::hidden(const EncoderInput& input) const { return in_own_dtype(states(input)); }

at::Tensor Encoder::forward(const EncoderInput& input) const {
  return in_own_dtype(head(states(input)));
}

}  // namespace paperlab::nn
