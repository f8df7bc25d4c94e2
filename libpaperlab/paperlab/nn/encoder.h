#pragma once
/// \file
/// Encoders: BERT, RoBERTa, DistilBERT and DeBERTa-v2, which read tokens, and ViT, which reads
/// pictures. They run a decoder's blocks with attention to both sides.
/// Source: Devlin et al., arXiv:1810.04805; Liu et al., arXiv:1907.11692; Sanh et al.,
/// arXiv:1910.01108; He et al., arXiv:2006.03654; Dosovitskiy et al., arXiv:2010.11929.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/block.h"
#include "paperlab/nn/connection.h"
#include "paperlab/nn/encoder_attention.h"
#include "paperlab/nn/encoder_config.h"
#include "paperlab/nn/parameter_set.h"

namespace paperlab::nn {

/// What an encoder reads: tokens with what goes with them, or pixels.
struct EncoderInput {
  at::Tensor tokens{};          ///< [B, T] int64, 0 <= token < vocab_size; B or T may be 0, T not
                                ///< where the first token's logits are wanted.
  at::Tensor attention_mask{};  ///< [B, T], not zero where a token counts; not defined: all.
  at::Tensor token_type_ids{};  ///< [B, T] int64 below num_token_types; not defined: zeros. A model
                                ///< without types does not read them.
  at::Tensor pixels{};          ///< [B, channels, height, width], floating.
};

/// An encoder whose parameters are tensors by name, without dropout. float16 is computed with in
/// float32. forward() may be called from several threads as long as nobody exchanges parts.
class PAPERLAB_API Encoder {
 public:
  /// \param specs   as encoder_parameter_specs(config), perhaps with other names.
  /// \param values  as for ParameterSet.
  /// \param make    of what stands in the residual connection's place, where norms are first; null:
  ///                nothing does.
  /// \throws ShapeError, DTypeError, ValueError  if they are not as above, a head has more than 256
  ///                                             lanes, or the mean of tokens is wanted.
  Encoder(EncoderConfig config, std::vector<ParameterSpec> specs, std::vector<at::Tensor> values,
          MakeConnection make = nullptr);

  ~Encoder() = default;
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  /// An encoder of the same kind with other values and with parts as they were at first.
  std::shared_ptr<Encoder> with_values(std::vector<at::Tensor> values) const;

  const EncoderConfig& config() const { return config_; }
  const ParameterSet& parameters() const { return parameters_; }
  void set_parameter(const std::string& name, const at::Tensor& value) {
    parameters_.set(name, value);
  }
  void to(const at::Device& device) { parameters_.to(device); }

  /// All linear layers by name in the order of their use.
  std::vector<LinearSlot*> linears();

  /// The layer of that name.
  /// \throws ValueError  if there is none.
  LinearSlot& linear(const std::string& name);

  /// Calls `hook` with the input of every linear layer from now on; returns its number.
  std::int64_t add_linear_hook(LinearHook hook);

  /// \throws ValueError  if there is no such hook.
  void remove_linear_hook(std::int64_t id);

  /// The states [B, T, E] after the last block, of pictures after the final norm.
  /// \throws c10::ValueError, c10::TypeError  if the input is not as above, or longer than
  ///                                          max_positions.
  at::Tensor hidden(const EncoderInput& input) const;

  /// What config().output says, in the parameters' dtype; differentiable with respect to the
  /// parameters and the pixels. Values at hidden tokens are finite. As hidden().
  at::Tensor forward(const EncoderInput& input) const;

 private:
  struct PositionSlots {
    LinearSlot query;
    LinearSlot key;
  };

  void make_blocks();
  void make_head();
  std::shared_ptr<const Attention> attention_of(std::size_t layer) const;
  at::Tensor embed_tokens(const EncoderInput& input) const;
  at::Tensor embed_positions(const at::Tensor& tokens) const;
  at::Tensor embed_pixels(const at::Tensor& pixels) const;
  at::Tensor convolved(const at::Tensor& embeddings, const at::Tensor& state,
                       const EncoderPass& pass) const;
  at::Tensor run(const at::Tensor& embeddings, const EncoderPass& pass) const;
  at::Tensor states(const EncoderInput& input) const;
  at::Tensor head(const at::Tensor& states) const;
  at::Tensor rows_of(Role role, const at::Tensor& ids, std::int64_t padding = -1) const;
  // In the dtype to compute in; not defined: there is none.
  at::Tensor value(Role role, bool is_bias = false) const;
  at::Tensor in_own_dtype(const at::Tensor& x) const;

  EncoderConfig config_;
  ParameterSet parameters_;
  std::shared_ptr<const NormLayer> embed_norm_;  // null: none
  std::shared_ptr<const NormLayer> relative_norm_;
  std::shared_ptr<const NormLayer> conv_norm_;
  std::shared_ptr<const NormLayer> first_norm_;  // of the first block's state, for the convolution
  std::vector<Block> blocks_;
  std::vector<PositionSlots> position_slots_;  // of each block; without layers where it has none
  std::shared_ptr<const NormLayer> final_norm_;
  LinearSlot pooler_;
  LinearSlot head_dense_;
  std::shared_ptr<const NormLayer> head_norm_;
  LinearSlot head_;
  MakeConnection make_connection_;
  std::shared_ptr<const Connection> connection_;
  LinearHooks hooks_;
  std::int64_t num_hooks_ = 0;  // ever added
};

}  // namespace paperlab::nn
