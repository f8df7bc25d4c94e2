// LibTorch's flash attention where it computes what the operator does, the log-sum-exp included.
// Its gradients are left alone: they add in whatever order blocks end, so that bits differ from run
// to run.

#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>

#include <cstdint>
#include <tuple>

#include "paperlab/ops/attention_torch_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::ops {
namespace {

constexpr std::int64_t kPackElements = 8;  // 16 bytes: what a thread copies at a time
constexpr std::int64_t kWidest = 256;

// Rows see all keys, or those up to their own, aligned at the bottom right; none sees no key.
bool sees_all_or_past(const AttentionArguments& in) {
  if (in.prefix_key.defined() || in.key_start.defined() || in.key_end.defined()) {
    return false;
  }
  const std::int64_t num_keys = in.key.size(2);
  const bool hides = in.window.has_value() && in.window->expect_int() < num_keys;
  return !in.causal || (!hides && num_keys >= in.query.size(2));
}

// Rows that begin at multiples of 16 bytes; a copy if these don't.
at::Tensor with_aligned_rows(const at::Tensor& x) {
  bool is_aligned = x.stride(3) == 1 && x.storage_offset() % kPackElements == 0;
  for (std::int64_t d = 0; d < 3; ++d) {
    is_aligned = is_aligned && x.stride(d) % kPackElements == 0;
  }
  if (is_aligned && checks::has_memory(x)) {
    is_aligned = reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16 == 0;
  }
  return is_aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}

// What LibTorch takes on this GPU; it prefers flash attention, or else that of cuDNN, where it has
// one. Both need sm_80.
bool is_offered(const AttentionArguments& in) {
  constexpr std::int64_t kFlash = 1;  // at::SDPBackend
  constexpr std::int64_t kCudnn = 3;
  if (!checks::has_memory(in.query)) {
    return true;
  }
  const std::int64_t choice =
      at::_fused_sdp_choice(in.query, in.key, in.value, {}, /*dropout_p=*/0.0, /*is_causal=*/false,
                            in.scale, /*enable_gqa=*/in.query.size(1) != in.key.size(1));
  return choice == kFlash || choice == kCudnn;
}

}  // namespace

bool takes_flash(const AttentionArguments& in) {
  const std::int64_t width = in.query.size(3);
  const bool is_half =
      in.query.scalar_type() == at::kBFloat16 || in.query.scalar_type() == at::kHalf;
  return in.query.is_cuda() && is_half && width % kPackElements == 0 && width <= kWidest &&
         in.query.numel() > 0 && in.key.numel() > 0 && scale_of(in) > 0.0 && sees_all_or_past(in) &&
         is_offered(in);
}

AttentionResults attention_by_flash(const AttentionArguments& in) {
  // One row sees every key; a row that is alone is not masked.
  const bool is_causal = in.causal && in.query.size(2) > 1;
  const auto results = at::_scaled_dot_product_flash_attention(
      with_aligned_rows(in.query), with_aligned_rows(in.key), with_aligned_rows(in.value),
      /*dropout_p=*/0.0, is_causal, /*return_debug_mask=*/false, scale_of(in));
  return {std::get<0>(results).contiguous(),
          std::get<1>(results).reshape(in.query.sizes().slice(0, 3)).contiguous()};
}

}  // namespace paperlab::ops
