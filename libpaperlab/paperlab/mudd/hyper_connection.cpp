#include "paperlab/mudd/hyper_connection.h"

#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>

#include <utility>

#include "paperlab/nn/widened.h"
#include "paperlab/ops/depth_aggregate.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/rms_norm.h"

namespace paperlab::mudd {
namespace {

// scale tanh(x w) + constant, x [n, B, T, D], w [D, m], constant [n, m]: [n, B, T, m].
at::Tensor coefficients(const at::Tensor& x, const at::Tensor& w, const at::Tensor& scale,
                        const at::Tensor& constant) {
  const at::Tensor dynamic = at::tanh(ops::linear(x, nn::widened(w).t()));
  return at::addcmul(nn::widened(constant).unsqueeze(1).unsqueeze(1), dynamic, nn::widened(scale));
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
    attention_ = open_site(2 * layer);
    const at::Tensor y = norm.forward(read(attention_));
    return {y, y, y};
  }

  void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override {
    write(attention_, out);
  }

  at::Tensor read_ffn(std::int64_t layer, const nn::NormLayer& norm) override {
    ffn_ = open_site(2 * layer + 1);
    if (!attention_.alpha.defined()) {
      return norm.forward(read(ffn_));
    }
    // A parallel block: what this site carries on is mixed when the attention has written.
    return norm.forward(mixed(ffn_.alpha.narrow(3, 0, 1)).select(0, 0));
  }

  void write_ffn(std::int64_t /*layer*/, const at::Tensor& out) override { write(ffn_, out); }

  at::Tensor finish(const nn::NormLayer& norm) override { return norm.forward(at::sum(state_, 0)); }

 private:
  // From a site's read to its write.
  struct OpenSite {
    at::Tensor alpha{};    // [n, B, T, n + 1]; not defined: nothing is to be written
    at::Tensor beta{};     // [n, B, T, 1]
    at::Tensor carried{};  // M without its row 0; not defined: not yet mixed
  };

  OpenSite open_site(std::int64_t number) const {
    const HyperSite& site = sites_[static_cast<std::size_t>(number)];
    const at::Tensor x = ops::rms_norm(state_, nn::widened(*site.norm), {}, eps_).y;
    return {coefficients(x, *site.dynamic_alpha_fn, *site.dynamic_alpha_scale, *site.static_alpha),
            coefficients(x, site.dynamic_beta_fn->unsqueeze(1), *site.dynamic_beta_scale,
                         site.static_beta->unsqueeze(1)),
            {}};
  }

  // Row m is the sum over the streams with column m of alpha [n, B, T, m].
  at::Tensor mixed(const at::Tensor& alpha) const {
    return ops::depth_aggregate(state_, alpha.permute({3, 1, 2, 0}));
  }

  // The sublayer's input, with what is carried on in the same pass.
  at::Tensor read(OpenSite& site) const {
    const at::Tensor rows = mixed(site.alpha);
    site.carried = rows.narrow(0, 1, rows.size(0) - 1);
    return rows.select(0, 0);
  }

  void write(OpenSite& site, const at::Tensor& out) {
    if (!site.carried.defined()) {
      site.carried = mixed(site.alpha.narrow(3, 1, site.alpha.size(3) - 1));
    }
    state_ = at::addcmul(site.carried, site.beta, out);
    site = {};
  }

  const std::vector<HyperSite>& sites_;
  double eps_;
  at::Tensor state_;  // [n, B, T, D]
  OpenSite attention_{};
  OpenSite ffn_{};
};

}  // namespace

std::unique_ptr<nn::Stream> HyperConnection::start(const at::Tensor& embeddings) const {
  return std::make_unique<HyperStream>(sites_, eps_, embeddings);
}

}  // namespace paperlab::mudd
