#pragma once
/// \file
/// Causal decoders of every form that DecoderConfig describes: Llama-style (RMSNorm, rotary
/// positions, grouped queries, SwiGLU), GPT-NeoX-style (LayerNorm, biases, partial rotary
/// positions, parallel residual), GPT-2 and OPT (learned positions), Gemma. Sources: nn/families.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/block.h"
#include "paperlab/nn/config.h"
#include "paperlab/nn/connection.h"
#include "paperlab/nn/parameter_set.h"
#include "paperlab/nn/rotary.h"

namespace paperlab::nn {

/// What a decoder keeps of the tokens it has read.
struct PAPERLAB_API Cache {
  std::int64_t batch_size = 0;
  std::int64_t length = 0;  ///< Tokens in it, padding included.
  std::int64_t max_length = 0;
  at::Tensor key_start{};        ///< [B] int64: padding before; not defined: none.
  std::int64_t num_padding = 0;  ///< Of the row with the least.
  std::vector<std::unique_ptr<LayerCache>> layers{};
  std::shared_ptr<const int> model{};  ///< Of the decoder that made it, which alone may use it.

  std::int64_t num_bytes() const;
};

struct ForwardOptions {
  /// [B, T], not zero where a token counts. Positions count these tokens alone. With a cache the
  /// padding must lie on the left, and the mask comes with the first call only. Not defined: all.
  at::Tensor attention_mask{};
  /// Tokens are appended to it, gradients are not recorded. Null: the tokens stand alone.
  Cache* cache = nullptr;
  /// Logits of the last token alone, [B, 1, V].
  bool last_only = false;
  /// Whether ids are looked at, which waits for a GPU. Else those outside of the vocabulary end in
  /// an error of LibTorch's: for tokens that a model has made.
  bool checks_ids = true;
};

/// A decoder whose parameters are tensors by name. float16 is computed with in float32. forward()
/// may be called from several threads as long as nobody exchanges parts.
class PAPERLAB_API Decoder {
 public:
  using Parameter = NamedParameter;

  /// \param specs   the embedding first; one spec for each role that the config asks for.
  /// \param values  one for each of `specs`, in that order, one dtype (float32, float64, bfloat16,
  ///                float16) and device.
  /// \param make    of what stands in the residual connection's place; null: nothing does.
  /// \throws ShapeError, DTypeError, ValueError  if they are not as above, or the config is not
  ///                                             one that a decoder can have.
  Decoder(DecoderConfig config, std::vector<ParameterSpec> specs, std::vector<at::Tensor> values,
          MakeConnection make = nullptr);

  /// With the names of parameter_specs(config, family).
  Decoder(const DecoderConfig& config, Family family, std::vector<at::Tensor> values)
      : Decoder(config, parameter_specs(config, family), std::move(values)) {}

  /// A decoder of the same kind with other values and with parts as they were at first.
  /// \throws ShapeError, DTypeError, ValueError  if they are not as for the constructor.
  std::shared_ptr<Decoder> with_values(std::vector<at::Tensor> values) const;

  const DecoderConfig& config() const { return config_; }
  const std::vector<Parameter>& parameters() const { return parameters_.list(); }

  /// Puts another tensor in a parameter's place; its shape must be the same.
  /// \throws ValueError, ShapeError  if there is no such parameter, or its shape is another.
  void set_parameter(const std::string& name, const at::Tensor& value) {
    parameters_.set(name, value);
  }

  /// Moves the parameters there, those that are elsewhere; they require gradients as before.
  void to(const at::Device& device) { parameters_.to(device); }

  /// The parameter of a role; nothing if the decoder has none. For a tied head the embedding.
  const at::Tensor* find(Role role, std::int64_t layer = -1, bool is_bias = false) const;

  /// The same with its name and layout; null if there is none.
  const Parameter* find_parameter(Role role, std::int64_t layer = -1, bool is_bias = false) const;

  /// Block `layer`, whose parts may be exchanged.
  /// \throws ValueError  if there is none.
  Block& block(std::int64_t layer);

  /// The head, whose layer may be exchanged.
  LinearSlot& head() { return head_; }

  /// The head where the logits are its product and no hook sees its input, so that a loss may
  /// multiply by it without the logits; else null.
  const DenseLinear* plain_head() const;

  /// All linear layers by name, the head last.
  std::vector<LinearSlot*> linears();

  /// The layer of that name.
  /// \throws ValueError  if there is none.
  LinearSlot& linear(const std::string& name);

  void set_connection(std::shared_ptr<const Connection> connection);

  /// Calls `hook` with the input of every linear layer from now on; returns its number.
  std::int64_t add_linear_hook(LinearHook hook);

  /// \throws ValueError  if there is no such hook.
  void remove_linear_hook(std::int64_t id);

  /// An empty cache.
  /// \throws ValueError  unless batch_size and max_length are >= 1 and memory holds the cache.
  std::unique_ptr<Cache> new_cache(std::int64_t batch_size, std::int64_t max_length) const;

  /// The logits of the next token after each.
  ///
  /// \param tokens  [B, T] int64, 0 <= token < vocab_size; B or T may be 0, T not with
  ///                last_only.
  /// \return        [B, T, V] (or [B, 1, V]) in the parameters' dtype; differentiable with respect
  ///                to the parameters. Values at padding are finite and mean nothing.
  /// \throws c10::ValueError, c10::TypeError  if tokens, mask or cache are not as above, or more
  ///                                          tokens count than config().max_positions; the cache
  ///                                          is as before then.
  at::Tensor forward(const at::Tensor& tokens, const ForwardOptions& options = {}) const;

  /// The state after the final norm, [B, T, E] with the width E of the head: what the head reads.
  /// As forward().
  at::Tensor hidden(const at::Tensor& tokens, const ForwardOptions& options = {}) const;

  /// What the head makes of states [..., E]: [..., V].
  at::Tensor logits(const at::Tensor& state) const;

 private:
  void make_blocks();
  void make_connection();
  std::shared_ptr<const NormLayer> norm_of(Role role, std::int64_t layer) const;
  std::shared_ptr<const NormLayer> stream_norm(Role role, std::int64_t layer) const;
  RotaryTable rotations(const Rotary& rotary, const at::Tensor& tokens, const at::Tensor& key_start,
                        std::int64_t num_past, std::int64_t seq_len) const;
  std::pair<AttentionInput, AttentionInput> positions(const at::Tensor& tokens,
                                                      const at::Tensor& key_start,
                                                      std::int64_t num_past,
                                                      std::int64_t num_padding) const;
  at::Tensor embed(const at::Tensor& tokens, const at::Tensor& key_start,
                   std::int64_t num_past) const;
  at::Tensor run(const at::Tensor& tokens, const at::Tensor& key_start, std::int64_t num_padding,
                 Cache* cache) const;

  DecoderConfig config_;
  std::shared_ptr<const int> identity_ = std::make_shared<int>(0);
  ParameterSet parameters_;
  std::shared_ptr<const Rotary> rotary_;
  std::shared_ptr<const Rotary> window_rotary_;       // of layers with a window, where they differ
  std::shared_ptr<const at::Tensor> position_table_;  // of learned positions
  LinearSlot project_in_;                             // of embeddings of another width
  LinearSlot project_out_;
  std::vector<Block> blocks_;
  std::shared_ptr<const NormLayer> final_norm_;
  LinearSlot head_;
  MakeConnection make_connection_;
  std::shared_ptr<const Connection> connection_;
  LinearHooks hooks_;
  std::int64_t num_hooks_ = 0;  // ever added
};

}  // namespace paperlab::nn
