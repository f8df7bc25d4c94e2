#include "paperlab/train/loss.h"

#include <ATen/ops/cross_entropy_loss.h>
#include <c10/util/Exception.h>

#include "paperlab/ops/linear_cross_entropy.h"

namespace paperlab::train {

at::Tensor next_token_loss(nn::Decoder& decoder, const at::Tensor& tokens) {
  TORCH_CHECK_VALUE(
      tokens.defined() && tokens.dim() == 2 && tokens.size(0) >= 1 && tokens.size(1) >= 2,
      "fit: a batch must be [B, T + 1] with B and T >= 1, got ", tokens.sizes());
  const std::int64_t length = tokens.size(1) - 1;
  const at::Tensor state = decoder.hidden(tokens.narrow(1, 0, length));
  const at::Tensor target = tokens.narrow(1, 1, length);
  const nn::DenseLinear* head = decoder.plain_head();
  if (head != nullptr && head->weight().scalar_type() == state.scalar_type()) {
    ops::LinearCrossEntropyOptions options;
    options.bias = head->bias();
    return ops::linear_cross_entropy(state, head->weight(), target, options).loss;
  }
  const at::Tensor logits = decoder.logits(state);
  const at::Tensor rows = logits.reshape({-1, logits.size(2)});
  const bool is_half = rows.scalar_type() == at::kBFloat16;
  return at::cross_entropy_loss(is_half ? rows.to(at::kFloat) : rows, target.reshape(-1));
}

}  // namespace paperlab::train
