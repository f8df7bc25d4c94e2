// A trap of the released snapshot: its pre- and post-norms leave X_i out of the streams Q, K and V,
// which are then exactly 0 at the start, so that Q and K never get a gradient. Eq. 10 adds X_i to
// every stream.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "experiments/mudd/rows.h"
#include "paperlab/core/rng.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/model.h"
#include "paperlab/ops/connection_weights.h"
#include "paperlab/ops/depth_aggregate.h"
#include "paperlab/ops/rms_norm.h"
#include "paperlab/train/loss.h"
#include "paperlab/train/optimizer.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

constexpr std::int64_t kBlocks = 6;
constexpr std::int64_t kWidth = 32;
constexpr std::int64_t kSteps = 3;
constexpr std::int64_t kBatch = 4;
constexpr std::int64_t kLength = 32;
constexpr double kRate = 3e-3;

lib::MuddConfig trap_config() {
  lib::MuddConfig config;
  config.vocab_size = 256;
  config.num_layers = kBlocks;
  config.d_model = kWidth;
  config.num_heads = 4;
  config.d_ff = 88;
  config.variant = lib::Variant::kMultiwayDynamic;
  config.pre_post_norm = lib::PrePostNorm::kEq10;
  return config;
}

// The snapshot's streams: sum_j A_j norm_j(X_j) for Q, K and V; X_i + post-norm(sum) for R.
class SnapshotStream final : public nn::Stream {
 public:
  SnapshotStream(const nn::ParameterOf& of, const at::Tensor& embeddings)
      : of_(of), query_(embeddings), key_(embeddings), value_(embeddings), residual_(embeddings) {
    push(embeddings);
  }

  nn::AttentionStreams read_attention(std::int64_t layer, const nn::NormLayer& norm) override {
    const at::Tensor query = norm.forward(query_);
    if (layer == 0) {
      return {query, query, query};
    }
    const std::string norms = "layers." + std::to_string(layer) + ".attention_norms.";
    return {query, normed(norms + "1.weight", key_), normed(norms + "2.weight", value_)};
  }

  void write_attention(std::int64_t /*layer*/, const at::Tensor& out) override {
    residual_ = at::add(residual_, out);
  }

  at::Tensor read_ffn(std::int64_t /*layer*/, const nn::NormLayer& norm) override {
    return norm.forward(residual_);
  }

  void write_ffn(std::int64_t layer, const at::Tensor& out) override {
    const at::Tensor x = at::add(residual_, out);
    push(x);
    const std::string number = std::to_string(layer);
    const std::string generator = "dynamic_dense." + number;
    const at::Tensor w1 = at::mul(*of_(generator + ".w1.weight"), *of_(generator + ".norm.weight"));
    const at::Tensor weights = ops::connection_weights(
        x, w1.t(), of_(generator + ".w2.weight")->t(), *of_("dense_bs." + number), {kEps, "exact"});
    const at::Tensor streams = ops::depth_aggregate(at::stack(states_), weights);
    const std::int64_t last = streams.size(0) - 1;
    if (last > 0) {
      query_ = streams.select(0, 0);
      key_ = streams.select(0, 1);
      value_ = streams.select(0, 2);
    }
    const at::Tensor scale = of_("post_norms." + number + ".weight")->select(0, last);
    residual_ = at::add(x, ops::rms_norm(streams.select(0, last), scale, {}, kEps).y);
  }

  at::Tensor finish(const nn::NormLayer& norm) override { return norm.forward(residual_); }

 private:
  static constexpr double kEps = 1e-6;

  at::Tensor normed(const std::string& name, const at::Tensor& x) const {
    return ops::rms_norm(x, *of_(name), {}, kEps).y;
  }

  void push(const at::Tensor& x) {
    states_.push_back(normed("source_norms." + std::to_string(states_.size()) + ".weight", x));
  }

  const nn::ParameterOf& of_;
  std::vector<at::Tensor> states_;  // normalized
  at::Tensor query_;
  at::Tensor key_;
  at::Tensor value_;
  at::Tensor residual_;
};

class SnapshotConnection final : public nn::Connection {
 public:
  explicit SnapshotConnection(nn::ParameterOf of) : of_(std::move(of)) {}

  std::unique_ptr<nn::Stream> start(const at::Tensor& embeddings) const override {
    return std::make_unique<SnapshotStream>(of_, embeddings);
  }

 private:
  nn::ParameterOf of_;
};

at::Tensor some_tokens(std::int64_t step) {
  at::Tensor tokens = at::empty({kBatch, kLength + 1}, at::kLong);
  auto* out = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    out[i] = static_cast<std::int64_t>(
        256.0 * philox_uniform(0, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(i)));
  }
  return tokens;
}

// Of the weights a and the rows of w2 of streams Q and K, and of stream V, in all aggregates that
// feed a block.
struct Gradients {
  double largest_qk = 0.0;
  double least_qk = std::numeric_limits<double>::infinity();  // of each tensor's largest
  double least_v = std::numeric_limits<double>::infinity();
  double first_norm = 0.0;  // of all gradients, first step
};

double largest(const at::Tensor& x) { return x.abs().max().item<double>(); }

void look(const nn::Decoder& decoder, Gradients& found) {
  for (const auto& parameter : decoder.parameters()) {
    const std::string& name = parameter.spec.name;
    const bool is_a = name.starts_with("dense_bs.");
    const bool is_w2 = name.starts_with("dynamic_dense.") && name.ends_with(".w2.weight");
    const std::int64_t rows = parameter.value->size(0);
    if ((!is_a && !is_w2) || rows % 4 != 0 || (is_a && rows != 4) ||
        name.find("." + std::to_string(kBlocks - 1)) != std::string::npos) {
      continue;
    }
    const at::Tensor& grad = parameter.value->grad();
    for (std::int64_t way = 0; way < 2; ++way) {
      const double most = largest(grad.narrow(0, way * rows / 4, rows / 4));
      found.largest_qk = std::max(found.largest_qk, most);
      found.least_qk = std::min(found.least_qk, most);
    }
    found.least_v = std::min(found.least_v, largest(grad.narrow(0, rows / 2, rows / 4)));
  }
}

Gradients train_some_steps(bool is_snapshot) {
  const lib::MuddConfig config = trap_config();
  std::vector<at::Tensor> values = lib::initial_values(config, 0, at::kDouble, {0.02, 0.25});
  for (at::Tensor& value : values) {
    value.requires_grad_();
  }
  const std::shared_ptr<nn::Decoder> decoder = lib::make_decoder(config, std::move(values));
  std::map<std::string, std::shared_ptr<const at::Tensor>> by_name;
  std::vector<train::Trained> trained;
  for (const auto& parameter : decoder->parameters()) {
    by_name[parameter.spec.name] = parameter.value;
    trained.push_back({parameter.spec.name, *parameter.value, 0.0});
  }
  if (is_snapshot) {
    decoder->set_connection(std::make_shared<SnapshotConnection>(
        [by_name](const std::string& name) { return by_name.at(name); }));
  }
  const auto optimizer = train::make_optimizer(trained, {});
  Gradients found;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const at::AutoGradMode with_gradients(true);
    for (train::Trained& parameter : trained) {
      parameter.value.mutable_grad().reset();
    }
    train::next_token_loss(*decoder, some_tokens(step)).backward();
    std::vector<at::Tensor> gradients;
    for (const train::Trained& parameter : trained) {
      if (parameter.value.grad().defined()) {
        gradients.push_back(parameter.value.grad());
      }
    }
    const double norm = train::clip_gradients(gradients, INFINITY);
    found.first_norm = step == 0 ? norm : found.first_norm;
    look(*decoder, found);
    optimizer->step(kRate);
  }
  return found;
}

}  // namespace

void snapshot_trap(Run& run) {
  const Gradients snapshot = train_some_steps(true);
  const Gradients eq10 = train_some_steps(false);
  run.scalar("trap: gradient norm of the first step, snapshot", snapshot.first_norm);
  run.scalar("trap: gradient norm of the first step, Eq. 10", eq10.first_norm);
  run.claim("C4c", snapshot.largest_qk);
  run.claim("C4d", snapshot.least_v);
  run.claim("C4e", eq10.least_qk);
}

}  // namespace paperlab::experiments::mudd
