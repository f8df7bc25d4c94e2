#pragma once
/// \file
/// What carries a decoder's state from sublayer to sublayer: the residual connection and whatever
/// a paper puts in its place.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/nn/attention.h"
#include "paperlab/nn/norm.h"

namespace paperlab::nn {

/// Normalized inputs of an attention layer, [B, T, E]; in a plain decoder the same tensor thrice.
struct AttentionStreams {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
};

/// The state of one forward pass. A block reads the attention's input, writes its output, reads
/// the feed-forward part's input, writes its output; a parallel block reads both first.
class PAPERLAB_API Stream {
 public:
  virtual ~Stream() = default;
  virtual AttentionStreams read_attention(std::int64_t layer, const NormLayer& norm) = 0;
  /// After the projections: may exchange queries, keys and values, not yet rotated.
  virtual void route_heads(std::int64_t /*layer*/, AttentionInput& /*input*/) {}
  virtual void write_attention(std::int64_t layer, const at::Tensor& out) = 0;
  virtual at::Tensor read_ffn(std::int64_t layer, const NormLayer& norm) = 0;
  virtual void write_ffn(std::int64_t layer, const at::Tensor& out) = 0;

  /// After the last block: the final norm of the state, [B, T, E].
  virtual at::Tensor finish(const NormLayer& norm) = 0;
};

class PAPERLAB_API Connection {
 public:
  virtual ~Connection() = default;

  /// \param embeddings  [B, T, E].
  virtual std::unique_ptr<Stream> start(const at::Tensor& embeddings) const = 0;
};

/// The parameter of that name, which somebody may exchange later; the decoder has it.
using ParameterOf = std::function<std::shared_ptr<const at::Tensor>(const std::string& name)>;

/// Makes a decoder's connection from its parameters.
using MakeConnection = std::function<std::shared_ptr<const Connection>(const ParameterOf& of)>;

/// x <- x + out. The addition waits for the next norm, which does it in its own pass.
class PAPERLAB_API ResidualConnection final : public Connection {
 public:
  std::unique_ptr<Stream> start(const at::Tensor& embeddings) const override;
};

}  // namespace paperlab::nn
