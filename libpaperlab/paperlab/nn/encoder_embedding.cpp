// What stands before an encoder's blocks: tokens, their types and positions, or patches of
// pictures; and the convolution beside the first block.
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/embedding.h>
#include <c10/util/Exception.h>

#include "paperlab/nn/activation.h"
#include "paperlab/nn/encoder.h"
#include "paperlab/nn/padding_internal.h"
#include "paperlab/nn/widened.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

constexpr char kForward[] = "forward";

void check_like_tokens(const char* name, const at::Tensor& x, const at::Tensor& tokens) {
  TORCH_CHECK_VALUE(!x.defined() || x.sizes() == tokens.sizes(), kForward, ": ", name,
                    " must be of the shape of tokens ", tokens.sizes(), ", got ", x.sizes());
}

void check_types(const at::Tensor& types, std::int64_t count) {
  TORCH_CHECK_TYPE(types.scalar_type() == at::kLong, kForward,
                   ": token_type_ids must be int64, got ", types.scalar_type());
  if (types.numel() == 0 || !ops::checks::has_memory(types)) {
    return;
  }
  const auto least = types.min().item<std::int64_t>();
  const auto most = types.max().item<std::int64_t>();
  TORCH_CHECK_VALUE(least >= 0 && most < count, kForward, ": token_type_ids must be in 0..",
                    count - 1, " (type_vocab_size ", count, "), got ", least < 0 ? least : most);
}

void check_length(std::int64_t length, std::int64_t most) {
  TORCH_CHECK_VALUE(length <= most, kForward, ": tokens must be at most ", most,
                    " (max_positions), got ", length);
}

void check_pixels(const at::Tensor& pixels, const PatchConfig& patches) {
  TORCH_CHECK_VALUE(pixels.defined(), kForward, ": pixels must be a tensor, got none");
  ops::checks::check_is_plain(kForward, "pixels", pixels);
  TORCH_CHECK_TYPE(pixels.is_floating_point(), kForward, ": pixels must be floating, got ",
                   pixels.scalar_type());
  const bool has_shape = pixels.dim() == 4 && pixels.size(1) == patches.num_channels &&
                         pixels.size(2) == patches.image_height &&
                         pixels.size(3) == patches.image_width;
  TORCH_CHECK_VALUE(has_shape, kForward, ": pixels must be [B, ", patches.num_channels, ", ",
                    patches.image_height, ", ", patches.image_width, "], got ", pixels.sizes());
}

// [B, patches, channels height width]: whole patches, row by row.
at::Tensor patches_of(const at::Tensor& pixels, const PatchConfig& patches) {
  const std::int64_t rows = patches.image_height / patches.height;
  const std::int64_t columns = patches.image_width / patches.width;
  return pixels.narrow(2, 0, rows * patches.height)
      .narrow(3, 0, columns * patches.width)
      .reshape({pixels.size(0), patches.num_channels, rows, patches.height, columns, patches.width})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape(
          {pixels.size(0), rows * columns, patches.num_channels * patches.height * patches.width});
}

}  // namespace

// The row of padding gets no gradient from here, as in transformers.
at::Tensor Encoder::rows_of(Role role, const at::Tensor& ids, std::int64_t padding) const {
  return widened(at::embedding(*parameters_.find(role), ids, padding));
}

// [B or 1, T, E]
at::Tensor Encoder::embed_positions(const at::Tensor& tokens) const {
  if (!config_.counts_from_padding) {
    check_length(tokens.size(1), config_.block.max_positions);
    return value(Role::kPositionEmbed).narrow(0, 0, tokens.size(1)).unsqueeze(0);
  }
  const std::int64_t padding = config_.block.pad_token_id.value_or(0);
  const at::Tensor counts = tokens.ne(padding);
  const at::Tensor at = counts.cumsum(1).mul(counts).add(padding);
  if (at.numel() > 0 && ops::checks::has_memory(at)) {
    check_length(at.max().item<std::int64_t>() - padding, config_.block.max_positions);
  }
  return rows_of(Role::kPositionEmbed, at, padding);
}

at::Tensor Encoder::embed_tokens(const EncoderInput& input) const {
  TORCH_CHECK_VALUE(!input.pixels.defined(), kForward, ": a model of tokens reads no pixels");
  const at::Tensor& tokens = input.tokens;
  check_tokens(kForward, tokens, config_.block.vocab_size);
  check_like_tokens("attention_mask", input.attention_mask, tokens);
  check_like_tokens("token_type_ids", input.token_type_ids, tokens);
  at::Tensor x = rows_of(Role::kEmbed, tokens, config_.block.pad_token_id.value_or(-1));
  if (config_.num_token_types > 0) {
    if (input.token_type_ids.defined()) {
      check_types(input.token_type_ids, config_.num_token_types);
      x = at::add(x, rows_of(Role::kTypeEmbed, input.token_type_ids));
    } else {
      x = at::add(x, value(Role::kTypeEmbed).select(0, 0));
    }
  }
  if (config_.num_positions > 0) {
    x = at::add(x, embed_positions(tokens));
  }
  return embed_norm_->forward(x);
}

// A patch's embedding is one product; the class, if there is one, comes before the patches.
at::Tensor Encoder::embed_pixels(const at::Tensor& pixels) const {
  check_pixels(pixels, config_.patches);
  const at::Tensor weight = value(Role::kPatchEmbed).flatten(1);
  const at::Tensor bias = value(Role::kPatchEmbed, true);
  const at::Tensor x = pixels.to(weight.options());
  at::Tensor embedded = ops::linear(patches_of(x, config_.patches), weight, bias);
  if (const at::Tensor first = value(Role::kClassToken); first.defined()) {
    embedded = at::cat({first.expand({x.size(0), 1, config_.block.d_model}), embedded}, 1);
  }
  return at::add(embedded, value(Role::kPositionEmbed));
}

// norm(state + activation(convolution of the embeddings)), zeros at hidden tokens.
at::Tensor Encoder::convolved(const at::Tensor& embeddings, const at::Tensor& state,
                              const EncoderPass& pass) const {
  const TokenConvolution& form = config_.convolution;
  at::Tensor out =
      at::convolution(embeddings.transpose(1, 2), value(Role::kConv), value(Role::kConv, true), {1},
                      {(form.kernel_size - 1) / 2}, {1}, false, {0}, form.groups)
          .transpose(1, 2);
  if (pass.visible.defined()) {
    out = out.mul(pass.visible.unsqueeze(2));
  }
  out = conv_norm_->forward(at::add(state, activate(form.activation, out)));
  return pass.visible.defined() ? out.mul(pass.visible.unsqueeze(2)) : out;
}

}  // namespace paperlab::nn
