#include "paperlab/nn/decoder.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/tanh.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/padding_internal.h"
#include "paperlab/nn/widened.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

constexpr char kForward[] = "forward";

// Of the row with the least padding.
std::int64_t least_of(const at::Tensor& key_start) {
  const bool is_known = key_start.defined() && ops::checks::has_memory(key_start);
  return is_known ? key_start.min().item<std::int64_t>() : 0;
}

// [B, T]: visible tokens before each; 0 at padding.
at::Tensor position_ids(const at::Tensor& tokens, const at::Tensor& key_start,
                        std::int64_t num_past) {
  return at::arange(num_past, num_past + tokens.size(1), tokens.options())
      .sub(key_start.unsqueeze(1))
      .clamp_min(0);
}

// To float32 and then to the dtype, as transformers keeps such factors.
double rounded(double value, at::ScalarType dtype) {
  const auto narrow = static_cast<float>(value);
  if (dtype == at::kBFloat16) {
    return static_cast<float>(c10::BFloat16(narrow));
  }
  return dtype == at::kHalf ? static_cast<float>(c10::Half(narrow)) : narrow;
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

std::unique_ptr<Cache> Decoder::new_cache(std::int64_t batch_size, std::int64_t max_length) const {
  require<ValueError>(batch_size >= 1 && max_length >= 1, "nn::Decoder::new_cache",
                      "batch_size and max_length >= 1",
                      std::to_string(batch_size) + " and " + std::to_string(max_length));
  auto cache = std::make_unique<Cache>();
  cache->batch_size = batch_size;
  cache->max_length = max_length;
  cache->model = identity_;
  at::TensorOptions options = parameters_.first().options().requires_grad(false);
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
RotaryTable Decoder::rotations(const Rotary& rotary, const at::Tensor& tokens,
                               const at::Tensor& key_start, std::int64_t num_past,
                               std::int64_t seq_len) const {
  const at::Tensor& parameter = parameters_.first();
  const at::ScalarType dtype = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (!key_start.defined()) {
    return rotary.range(num_past, tokens.size(1), dtype, seq_len, parameter.device());
  }
  const at::Tensor at = position_ids(tokens, key_start, num_past);
  const bool has_values = at.is_cpu() && ops::checks::has_memory(at);
  return has_values ? rotary.at(at, dtype, seq_len) : rotary.rows(at, seq_len, dtype);
}

// What blocks share: rotations of the tokens' positions, and which keys are padding; for layers
// without a window and for those with one.
std::pair<AttentionInput, AttentionInput> Decoder::positions(const at::Tensor& tokens,
                                                             const at::Tensor& key_start,
                                                             std::int64_t num_past,
                                                             std::int64_t num_padding) const {
  const std::int64_t seq_len = num_past + tokens.size(1) - num_padding;
  TORCH_CHECK_VALUE(seq_len <= config_.max_positions, kForward, ": tokens must be at most ",
                    config_.max_positions, " with those in the cache (max_positions), got ",
                    seq_len);
  AttentionInput input;
  input.key_start = key_start;
  input.num_past = num_past;
  const auto rotate_by = [&](const Rotary& rotary, AttentionInput& rotated) {
    RotaryTable table = rotations(rotary, tokens, key_start, num_past, seq_len);
    rotated.cos = std::move(table.cos);
    rotated.sin = std::move(table.sin);
  };
  if (rotary_ != nullptr) {
    rotate_by(*rotary_, input);
  }
  AttentionInput windowed = input;
  if (window_rotary_ != nullptr) {
    rotate_by(*window_rotary_, windowed);
  }
  return {std::move(input), std::move(windowed)};
}

// [B, T, d_model]. The positions are known to be below max_positions.
at::Tensor Decoder::embed(const at::Tensor& tokens, const at::Tensor& key_start,
                          std::int64_t num_past) const {
  const at::Tensor& table = parameters_.first();
  at::Tensor x = widened(at::embedding(table, tokens));
  if (config_.embed_scale != 1.0) {
    x = at::mul(x, rounded(config_.embed_scale, table.scalar_type()));
  }
  if (project_in_.layer != nullptr) {
    x = project_in_(x, hooks_);
  }
  if (position_table_ == nullptr) {
    return x;
  }
  const std::int64_t first = config_.position_offset;
  const at::Tensor rows =
      key_start.defined()
          ? at::embedding(*position_table_, position_ids(tokens, key_start, num_past).add(first))
          : position_table_->narrow(0, first + num_past, tokens.size(1));
  return at::add(x, widened(rows));
}

at::Tensor Decoder::run(const at::Tensor& tokens, const at::Tensor& key_start,
                        std::int64_t num_padding, Cache* cache) const {
  const std::int64_t num_past = cache == nullptr ? 0 : cache->length;
  auto [call, windowed] = positions(tokens, key_start, num_past, num_padding);
  const std::unique_ptr<Stream> stream = connection_->start(embed(tokens, key_start, num_past));
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    const std::int64_t window = config_.windows.empty() ? 0 : config_.windows[layer];
    AttentionInput& input = window > 0 ? windowed : call;
    input.layer = static_cast<std::int64_t>(layer);
    input.window = window;
    blocks_[layer].forward(config_, hooks_, input, *stream,
                           cache == nullptr ? nullptr : cache->layers[layer].get());
  }
  const at::Tensor state = stream->finish(*final_norm_);
  return project_out_.layer == nullptr ? state : project_out_(state, hooks_);
}

at::Tensor Decoder::hidden(const at::Tensor& tokens, const ForwardOptions& options) const {
  const NoRecording no_recording(options.cache != nullptr);
  parameters_.check(kForward);
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
  const std::int64_t num_past = options.cache == nullptr ? 0 : options.cache->length;
  try {
    at::Tensor state = hidden(tokens, options);
    if (options.last_only) {
      state = state.narrow(1, state.size(1) - 1, 1);
    }
    const at::Tensor result = logits(state);
    const at::ScalarType dtype = parameters_.first().scalar_type();
    return dtype == at::kHalf ? result.to(dtype) : result;
  } catch (...) {  // also where the layers have taken the tokens: the caller may try again
    if (options.cache != nullptr) {
      options.cache->length = num_past;
    }
    throw;
  }
}

at::Tensor Decoder::logits(const at::Tensor& state) const {
  const at::Tensor plain = head_(state, hooks_);
  const double cap = config_.logit_softcap;
  return cap == 0.0 ? plain : at::mul(at::tanh(at::div(plain, cap)), cap);
}

}  // namespace paperlab::nn
