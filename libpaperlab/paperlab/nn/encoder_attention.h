#pragma once
/// \file
/// Attention of encoders: queries see all tokens that are not hidden, before and after them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "paperlab/nn/attention.h"
#include "paperlab/nn/encoder_config.h"
#include "paperlab/nn/linear.h"

namespace paperlab::nn {

/// What the layers of one forward pass share.
struct EncoderPass {
  at::Tensor visible{};    ///< [B, T] bool; not defined: every token counts.
  at::Tensor key_start{};  ///< [B] int64: the tokens that count lie in key_start..key_end - 1 ...
  at::Tensor key_end{};
  at::Tensor
      key_order{};  ///< [B, T] int64: ... of the tokens in this order; not defined: as given.
  at::Tensor distances{};  ///< [2 span, E]: embeddings of distances, normalized; DeBERTa's.
  at::Tensor buckets{};    ///< [T, T] int64: the row of `distances` for query and key.
  const LinearHooks* hooks = nullptr;
};

/// Returns the pass of a batch with this mask: [B, T], not zero where a token counts; not defined:
/// everywhere. Keys are reordered where the tokens that count are not neighbours.
EncoderPass encoder_pass(const at::Tensor& attention_mask);

/// Softmax attention over all tokens that count; a row of a batch without any gets zeros.
class PAPERLAB_API BidirectionalAttention final : public Attention {
 public:
  at::Tensor forward(const AttentionInput& input, LayerCache* cache) const override;

  /// \throws UnsupportedError  encoders have no cache.
  std::unique_ptr<LayerCache> new_cache(const CacheShape& shape) const override;
};

/// Attention with logits of content and content, content and distance, distance and content.
/// Source: He et al., arXiv:2006.03654, Eq. (4).
class PAPERLAB_API DisentangledAttention final : public Attention {
 public:
  /// \param query  projects distances to queries, `key` to keys; without a layer where the config
  ///               does without. They must outlive this.
  DisentangledAttention(const EncoderConfig& config, const LinearSlot& query, const LinearSlot& key)
      : num_terms_(config.attention_terms), config_(config.relative), query_(query), key_(key) {}

  at::Tensor forward(const AttentionInput& input, LayerCache* cache) const override;

  /// \throws UnsupportedError  encoders have no cache.
  std::unique_ptr<LayerCache> new_cache(const CacheShape& shape) const override;

 private:
  at::Tensor of_distances(const LinearSlot& slot, const AttentionInput& input) const;

  std::int64_t num_terms_;
  RelativeConfig config_;
  const LinearSlot& query_;
  const LinearSlot& key_;
};

/// Returns the rows of the table of distances for queries and keys of `length` tokens, [T, T]
/// int64: bucket(query - key) + span, in 0..2 span - 1.
PAPERLAB_API at::Tensor distance_buckets(const RelativeConfig& config, std::int64_t length,
                                         const at::Device& device);

}  // namespace paperlab::nn
