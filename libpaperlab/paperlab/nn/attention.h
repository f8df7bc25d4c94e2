#pragma once
/// \file
/// The attention of a decoder's layers and its cache: the place where a paper puts another form.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "paperlab/core/export.h"

namespace paperlab::nn {

struct EncoderPass;

/// One layer's queries, keys and values, not yet rotated.
struct AttentionInput {
  at::Tensor query;           ///< [B, T, H, D], any strides with D contiguous.
  at::Tensor key;             ///< [B, T, G, D], likewise.
  at::Tensor value;           ///< [B, T, G, D], likewise.
  at::Tensor cos;             ///< [B or 1, T, R/2] of the tokens' positions; not defined: R = 0.
  at::Tensor sin;             ///< likewise
  at::Tensor key_start;       ///< [B] int64: earlier tokens are padding; not defined: none are.
  std::int64_t layer = 0;     ///< 0 is the first.
  std::int64_t window = 0;    ///< The last so many keys; 0: all.
  std::int64_t num_past = 0;  ///< Tokens in the cache before these.
  const EncoderPass* encoder = nullptr;  ///< Of an encoder (encoder_attention.h); else null.
};

/// Queries or keys [B, T, heads, D] at the positions of the input's tokens.
PAPERLAB_API at::Tensor rotated(const at::Tensor& x, const AttentionInput& input);

/// What a layer keeps of past tokens. Each form of attention has its own.
class PAPERLAB_API LayerCache {
 public:
  virtual ~LayerCache() = default;
  virtual std::int64_t num_bytes() const = 0;  ///< that it holds
};

struct CacheShape {
  std::int64_t batch_size = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t head_dim = 1;
  std::int64_t max_length = 1;
  at::TensorOptions options{};
};

/// Implementations are safe to call from several threads.
class PAPERLAB_API Attention {
 public:
  virtual ~Attention() = default;

  /// \param cache  of new_cache(), or null: then only the tokens given exist. Tokens num_past and
  ///               later that it may hold are overwritten.
  /// \return       [B, T, H, D].
  virtual at::Tensor forward(const AttentionInput& input, LayerCache* cache) const = 0;

  virtual std::unique_ptr<LayerCache> new_cache(const CacheShape& shape) const = 0;
};

/// Causal softmax attention over all keys or a window of them.
class PAPERLAB_API FullAttention final : public Attention {
 public:
  at::Tensor forward(const AttentionInput& input, LayerCache* cache) const override;
  std::unique_ptr<LayerCache> new_cache(const CacheShape& shape) const override;
};

}  // namespace paperlab::nn
