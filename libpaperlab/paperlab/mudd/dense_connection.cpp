#include "paperlab/mudd/dense_connection.h"

#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>

#include <string_view>

#include "paperlab/nn/widened.h"
#include "paperlab/ops/connection_weights.h"
#include "paperlab/ops/depth_step.h"
#include "paperlab/ops/rms_norm.h"

namespace paperlab::mudd {
namespace {

std::string_view gelu_of(const DenseOptions& options) {
  return options.has_tanh_gelu ? "tanh" : "exact";
}

// The weights [C, B, T, J] that x [B, T, D] gets.
at::Tensor weights_of(const DenseLayer& layer, const DenseOptions& options, const at::Tensor& x) {
  const at::Tensor bias = nn::widened(*layer.bias);
  if (layer.w1 == nullptr) {
    return bias.unsqueeze(1).unsqueeze(1).expand(
        {bias.size(0), x.size(0), x.size(1), bias.size(1)});
  }
  at::Tensor w1 = nn::widened(*layer.w1);
  if (layer.generator_norm != nullptr) {  // (x r g) W1 = (x r) (g W1)
    w1 = at::mul(w1, nn::widened(*layer.generator_norm));
  }
  return ops::connection_weights(x, w1.t(), nn::widened(*layer.w2).t(), bias,
                                 {options.eps, gelu_of(options)});
}

// The states of a pass so far, and the sums over them after a block: X_(l+1) = base + delta and a
// stream for each way.
class States {
 public:
  virtual ~States() = default;
  virtual ops::DepthStep push(const DenseLayer& layer, const at::Tensor& base,
                              const at::Tensor& delta) = 0;
};

class PlainStates final : public States {
 public:
  PlainStates(std::int64_t capacity, const DenseOptions& options, const at::Tensor& embeddings)
      : options_(options), states_(capacity, embeddings) {}

  ops::DepthStep push(const DenseLayer& layer, const at::Tensor& base,
                      const at::Tensor& delta) override {
    ops::DepthWeights weights;
    if (!layer.ways.empty()) {
      weights.bias = nn::widened(*layer.bias);
      weights.eps = options_.eps;
      weights.gelu = gelu_of(options_);
      if (layer.w1 != nullptr) {
        weights.w1 = nn::widened(*layer.w1).t();
        weights.w2 = nn::widened(*layer.w2).t();
      }
    }
    return states_.push(base, delta, weights, layer.sources);
  }

 private:
  const DenseOptions& options_;
  ops::DepthStates states_;
};

// Normalized states, and sums that are normalized before X_(l+1) is added (Eq. 10).
class NormedStates final : public States {
 public:
  NormedStates(std::int64_t capacity, const DenseOptions& options, const at::Tensor& embeddings)
      : options_(options), states_(capacity, normed(*options.source_norms[0], embeddings)) {}

  ops::DepthStep push(const DenseLayer& layer, const at::Tensor& base,
                      const at::Tensor& delta) override {
    ops::DepthStep step{at::add(base, delta), {}};
    const at::Tensor& scale = *options_.source_norms[static_cast<std::size_t>(states_.size())];
    ops::DepthWeights weights;
    if (!layer.ways.empty()) {
      weights.bias = weights_of(layer, options_, step.newest);
    }
    step.streams = states_.push(normed(scale, step.newest), {}, weights, layer.sources).streams;
    for (std::size_t way = 0; way < step.streams.size(); ++way) {
      at::Tensor& stream = step.streams[way];
      if (options_.pre_post_norm == PrePostNorm::kEq10 || layer.ways[way] == 'R') {
        stream = normed(layer.post_norm->select(0, static_cast<std::int64_t>(way)), stream);
      }
      stream = at::add(stream, step.newest);
    }
    return step;
  }

 private:
  at::Tensor normed(const at::Tensor& scale, const at::Tensor& x) const {
    return ops::rms_norm(x, nn::widened(scale), {}, options_.eps).y;
  }

  const DenseOptions& options_;
  ops::DepthStates states_;
};

class DenseStream final : public nn::Stream {
 public:
  DenseStream(const std::vector<DenseLayer>& layers, const DenseOptions& options,
              const DenseObserver* observer, const at::Tensor& embeddings)
      : layers_(layers), options_(options), observer_(observer) {
    const auto capacity = static_cast<std::int64_t>(layers.size()) + 1;
    if (options.pre_post_norm == PrePostNorm::kNone) {
      states_ = std::make_unique<PlainStates>(capacity, options, embeddings);
    } else {
      states_ = std::make_unique<NormedStates>(capacity, options, embeddings);
    }
    streams_ = {embeddings, embeddings, embeddings, embeddings};
    observe_state(0, embeddings);
  }

  nn::AttentionStreams read_attention(std::int64_t layer, const nn::NormLayer& norm) override {
    observe_streams(layer);
    const DenseLayer& of_layer = layers_[static_cast<std::size_t>(layer)];
    const at::Tensor query = norm.forward(streams_.query);
    if (of_layer.key_norm == nullptr) {
      return {query, query, query};
    }
    return {query, of_layer.key_norm->forward(streams_.key),
            of_layer.value_norm->forward(streams_.value)};
  }

  void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override { attention_ = out; }

  at::Tensor read_ffn(std::int64_t /*layer*/, const nn::NormLayer& norm) override {
    if (!attention_.defined()) {  // a parallel block
      return norm.forward(streams_.residual);
    }
    nn::NormLayer::Sum sum = norm.add(streams_.residual, attention_);
    streams_.residual = std::move(sum.sum);
    attention_.reset();
    return std::move(sum.y);
  }

  void write_ffn(std::int64_t layer, const at::Tensor& out) override {
    if (attention_.defined()) {
      streams_.residual = at::add(streams_.residual, attention_);
      attention_.reset();
    }
    const DenseLayer& of_layer = layers_[static_cast<std::size_t>(layer)];
    const ops::DepthStep step = states_->push(of_layer, streams_.residual, out);
    const at::Tensor& newest = step.newest;
    streams_ = {newest, newest, newest, newest};
    for (std::size_t way = 0; way < step.streams.size(); ++way) {
      assign(of_layer.ways[way], step.streams[way]);
    }
    observe_state(layer + 1, newest);
    observe_weights(layer, newest);
  }

  at::Tensor finish(const nn::NormLayer& norm) override {
    observe_streams(static_cast<std::int64_t>(layers_.size()));
    return norm.forward(streams_.residual);
  }

 private:
  void assign(char way, const at::Tensor& stream) {
    if (!options_.is_multiway) {
      streams_ = {stream, stream, stream, stream};
    } else {
      at::Tensor& place = way == 'Q'   ? streams_.query
                          : way == 'K' ? streams_.key
                          : way == 'V' ? streams_.value
                                       : streams_.residual;
      place = stream;
    }
  }

  void observe_state(std::int64_t number, const at::Tensor& state) const {
    if (observer_ != nullptr && observer_->on_state) {
      observer_->on_state(number, state);
    }
  }

  void observe_weights(std::int64_t layer, const at::Tensor& newest) const {
    const DenseLayer& of_layer = layers_[static_cast<std::size_t>(layer)];
    if (observer_ != nullptr && observer_->on_weights && !of_layer.ways.empty()) {
      observer_->on_weights(layer, weights_of(of_layer, options_, newest));
    }
  }

  void observe_streams(std::int64_t layer) const {
    if (observer_ != nullptr && observer_->on_streams) {
      observer_->on_streams(layer, streams_);
    }
  }

  const std::vector<DenseLayer>& layers_;
  const DenseOptions& options_;
  const DenseObserver* observer_;
  std::unique_ptr<States> states_;
  Streams streams_;
  at::Tensor attention_;  // not yet added to the residual stream
};

}  // namespace

std::unique_ptr<nn::Stream> DenseConnection::start(const at::Tensor& embeddings) const {
  return std::make_unique<DenseStream>(layers_, options_, observer_.get(), embeddings);
}

}  // namespace paperlab::mudd
