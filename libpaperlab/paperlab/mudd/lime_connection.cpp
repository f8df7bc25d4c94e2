#include "paperlab/mudd/lime_connection.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>

#include <cstdint>
#include <utility>

#include "paperlab/nn/widened.h"

namespace paperlab::mudd {
namespace {

class LimeStream final : public nn::Stream {
 public:
  LimeStream(const std::vector<std::shared_ptr<const at::Tensor>>& routers,
             std::unique_ptr<nn::Stream> residual)
      : routers_(routers), residual_(std::move(residual)) {}

  nn::AttentionStreams read_attention(std::int64_t layer, const nn::NormLayer& norm) override {
    return residual_->read_attention(layer, norm);
  }

  void route_heads(std::int64_t layer, nn::AttentionInput& input) override {
    input.key = routed(layer, input.key, keys_);
    input.value = routed(layer, input.value, values_);
  }

  void write_attention(std::int64_t layer, const at::Tensor& out) override {
    residual_->write_attention(layer, out);
  }

  at::Tensor read_ffn(std::int64_t layer, const nn::NormLayer& norm) override {
    return residual_->read_ffn(layer, norm);
  }

  void write_ffn(std::int64_t layer, const at::Tensor& out) override {
    residual_->write_ffn(layer, out);
  }

  at::Tensor finish(const nn::NormLayer& norm) override { return residual_->finish(norm); }

 private:
  // x [B, T, G, D] joins `heads`, rows of B T D numbers, and comes back routed.
  at::Tensor routed(std::int64_t layer, const at::Tensor& x, std::vector<at::Tensor>& heads) const {
    const at::Tensor rows = x.permute({2, 0, 1, 3});
    heads.push_back(rows.reshape({x.size(2), -1}));
    if (layer == 0) {
      return x;
    }
    const at::Tensor router = nn::widened(*routers_[static_cast<std::size_t>(layer - 1)]);
    return at::mm(router, at::cat(heads)).view(rows.sizes()).permute({1, 2, 0, 3});
  }

  const std::vector<std::shared_ptr<const at::Tensor>>& routers_;
  std::unique_ptr<nn::Stream> residual_;
  std::vector<at::Tensor> keys_;  // of the layers so far
  std::vector<at::Tensor> values_;
};

}  // namespace

std::unique_ptr<nn::Stream> LimeConnection::start(const at::Tensor& embeddings) const {
  return std::make_unique<LimeStream>(routers_, nn::ResidualConnection().start(embeddings));
}

}  // namespace paperlab::mudd
