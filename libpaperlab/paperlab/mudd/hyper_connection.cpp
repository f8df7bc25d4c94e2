#include "paperlab/mudd/hyper_connection.h"

#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>

#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/ops/depth_aggregate.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/rms_norm.h"

namespace paperlab::mudd {
namespace {

// scale tanh(x w) + constant, x [n, B, T, D], w [D, m], constant [n, m]: [n, B, T, m].
at::Tensor coefficients(const at::Tensor& x, const at::Tensor& w, const at::Tensor& scale,
                        const at::Tensor& constant) {
  const at::Tensor dynamic = at::tanh(ops::linear(x, w.t()));
  return at::addcmul(constant.unsqueeze(1).unsqueeze(1), dynamic, scale);
}

class HyperStream final : public nn::Stream {
 public:
  HyperStream(const std::vector<HyperSite>& sites, double eps, const at::Tensor& embeddings)
      : sites_(sites), eps_(eps) {
    const std::int64_t num_streams = sites.front().static_beta->size(0);
    state_ = embeddings.unsqueeze(0).expand(
        {num_streams, embeddings.size(0), embeddings.size(1), embeddings.size(2)});
  }

  nn::AttentionStreams read_attention(std::int64_t layer, const nn::NormLayer& norm) override {
    const at::Tensor y = norm.forward(read(2 * layer));
    return {y, y, y};
  }

  void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override { write(out); }

  at::Tensor read_ffn(std::int64_t layer, const nn::NormLayer& norm) override {
    require<ValueError>(!carried_.defined(), "mudd::HyperConnection",
                        "a block whose attention writes before its feed-forward part reads",
                        "a parallel block");
    return norm.forward(read(2 * layer + 1));
  }

  void write_ffn(std::int64_t /*layer*/, const at::Tensor& out) override { write(out); }

  at::Tensor finish(const nn::NormLayer& norm) override { return norm.forward(at::sum(state_, 0)); }

 private:
  at::Tensor read(std::int64_t number) {
    const HyperSite& site = sites_[static_cast<std::size_t>(number)];
    const at::Tensor x = ops::rms_norm(state_, *site.norm, {}, eps_).y;
    const at::Tensor alpha =
        coefficients(x, *site.dynamic_alpha_fn, *site.dynamic_alpha_scale, *site.static_alpha);
    beta_ = coefficients(x, site.dynamic_beta_fn->unsqueeze(1), *site.dynamic_beta_scale,
                         site.static_beta->unsqueeze(1));
    // Row m of M is the sum over the streams with column m of alpha.
    const at::Tensor mixed = ops::depth_aggregate(state_, alpha.permute({3, 1, 2, 0}));
    carried_ = mixed.narrow(0, 1, mixed.size(0) - 1);
    return mixed.select(0, 0);
  }

  void write(const at::Tensor& out) {
    state_ = at::addcmul(carried_, beta_, out);
    carried_.reset();
  }

  const std::vector<HyperSite>& sites_;
  double eps_;
  at::Tensor state_;    // [n, B, T, D]
  at::Tensor carried_;  // M without its row 0, from a read to the write after it
  at::Tensor beta_;     // [n, B, T, 1]
};

}  // namespace

std::unique_ptr<nn::Stream> HyperConnection::start(const at::Tensor& embeddings) const {
  return std::make_unique<HyperStream>(sites_, eps_, embeddings);
}

}  // namespace paperlab::mudd
