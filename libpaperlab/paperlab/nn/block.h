#pragma once
/// \file
/// One decoder block: norms, projections, attention, feed-forward part. Each member may be
/// exchanged; the order of operations is here and nowhere else.

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/attention.h"
#include "paperlab/nn/config.h"
#include "paperlab/nn/connection.h"
#include "paperlab/nn/linear.h"
#include "paperlab/nn/norm.h"

namespace paperlab::nn {

struct PAPERLAB_API Block {
  std::shared_ptr<const NormLayer> attention_norm;
  std::shared_ptr<const NormLayer> ffn_norm;
  std::shared_ptr<const NormLayer> post_attention_norm;  ///< of its output; null: none
  std::shared_ptr<const NormLayer> post_ffn_norm;
  std::shared_ptr<const NormLayer> query_norm;  ///< over a head; null without QK-norm
  std::shared_ptr<const NormLayer> key_norm;
  LinearSlot query;
  LinearSlot key;
  LinearSlot value;
  LinearSlot query_key_value;  ///< instead of the three, where config.has_fused_qkv
  LinearSlot out;
  LinearSlot gate;  ///< unused without config.has_gate
  LinearSlot up;
  LinearSlot down;
  std::shared_ptr<const Attention> attention;

  /// The linear layers in the order of their use.
  std::vector<LinearSlot*> linears(const DecoderConfig& config);

  /// Takes `stream` past this block.
  /// \param call  what all blocks have in common; query, key and value are not read.
  void forward(const DecoderConfig& config, const LinearHooks& hooks, const AttentionInput& call,
               Stream& stream, LayerCache* cache) const;

 private:
  at::Tensor attend(const DecoderConfig& config, const LinearHooks& hooks, AttentionInput call,
                    const AttentionStreams& x, Stream& stream, LayerCache* cache) const;
  at::Tensor feed_forward(const DecoderConfig& config, const LinearHooks& hooks,
                          const at::Tensor& x) const;
  at::Tensor hidden_layer(const DecoderConfig& config, const LinearHooks& hooks,
                          const at::Tensor& x) const;
  void project(const DecoderConfig& config, const LinearHooks& hooks, const AttentionStreams& x,
               AttentionInput& input) const;
};

/// Lets each sublayer's norm stand after the sum, x = norm(x + f(x)): the norm of whoever reads the
/// state next becomes that of the sublayer before. Returns the norm of the reader after the blocks.
PAPERLAB_API std::shared_ptr<const NormLayer> put_norms_after(std::vector<Block>& blocks);

}  // namespace paperlab::nn
