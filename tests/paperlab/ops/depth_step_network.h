#pragma once
// A toy network of blocks that read streams, on what carries the states of a pass: ours, or
// LibTorch's operators and plain autograd.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/rng.h"
#include "paperlab/ops/depth_step.h"

namespace paperlab::ops::depth_test {

using Tensors = std::vector<at::Tensor>;
using Sources = std::vector<std::int64_t>;

inline at::Tensor normal(at::IntArrayRef shape, std::uint64_t stream, double scale = 1.0) {
  at::Tensor x = at::zeros(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.mutable_data_ptr<double>()[i] =
        scale * philox_normal(11, stream, static_cast<std::uint64_t>(i));
  }
  return x;
}

// What carries the states of a pass: ours, or the definition.
class Depth {
 public:
  virtual ~Depth() = default;
  virtual DepthStep push(const at::Tensor& base, const at::Tensor& delta,
                         const DepthWeights& weights, const Sources& sources) = 0;
};

class Ours final : public Depth {
 public:
  Ours(std::int64_t capacity, const at::Tensor& first) : states_(capacity, first) {}

  DepthStep push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights,
                 const Sources& sources) override {
    return states_.push(base, delta, weights, sources);
  }

 private:
  DepthStates states_;
};

inline at::Tensor weights_by_definition(const at::Tensor& x, const DepthWeights& in) {
  const auto [ways, sources] = std::pair(in.bias.size(0), in.bias.size(-1));
  if (!in.w1.defined()) {
    return in.bias.dim() == 4
               ? in.bias
               : in.bias.view({ways, 1, 1, sources}).expand({ways, x.size(0), x.size(1), sources});
  }
  const at::Tensor n = x * at::rsqrt(x.square().mean(-1, true) + in.eps);
  const at::Tensor h = at::gelu(at::matmul(n, in.w1), in.gelu == "exact" ? "none" : "tanh");
  return at::matmul(h, in.w2)
      .view({x.size(0), x.size(1), ways, sources})
      .add(in.bias)
      .permute({2, 0, 1, 3});
}

class Definition final : public Depth {
 public:
  explicit Definition(const at::Tensor& first) : states_({first}) {}

  DepthStep push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights,
                 const Sources& sources) override {
    const at::Tensor newest = delta.defined() ? base + delta : base;
    states_.push_back(newest);
    DepthStep step{newest, {}};
    if (weights.bias.defined()) {
      Tensors read;
      for (const std::int64_t source : sources) {
        read.push_back(states_[static_cast<std::size_t>(source)]);
      }
      const at::Tensor made = weights_by_definition(newest, weights);
      const at::Tensor x = at::stack(read, -1);  // [B, T, D, J]
      for (std::int64_t way = 0; way < made.size(0); ++way) {
        step.streams.push_back((x * made.select(0, way).unsqueeze(2)).sum(-1));
      }
    }
    return step;
  }

 private:
  Tensors states_;
};

enum class Kind { kGenerated, kStatic, kGiven, kNone };

struct Case {
  std::string name;
  std::int64_t batch = 2;
  std::int64_t length = 3;
  std::int64_t width = 5;
  std::int64_t ways = 4;
  std::int64_t dilation = 1;
  std::int64_t window = 0;  // 0: all
  Kind kind = Kind::kGenerated;
  std::string gelu = "exact";
  std::int64_t period = 1;      // aggregates after every so many pushes
  bool lies_as_linear = false;  // w2 is turned over too
  bool has_delta = true;
  bool uses_newest = false;
  double gain = 1.0;  // of the matrices
  at::ScalarType dtype = at::kDouble;
  std::optional<std::size_t> trained = std::nullopt;  // the one parameter with a gradient
};

inline void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

inline std::vector<Case> all_cases() {
  return {Case{.name = "mudd"},
          Case{.name = "tanh", .gelu = "tanh"},
          Case{.name = "linear", .lies_as_linear = true},
          Case{.name = "linear_decode", .batch = 1, .length = 1, .lies_as_linear = true},
          Case{.name = "one_way", .ways = 1},
          Case{.name = "two_ways", .ways = 2},
          Case{.name = "three_ways", .ways = 3},
          Case{.name = "dilation", .dilation = 2},
          Case{.name = "window", .window = 2},
          Case{.name = "period", .dilation = 2, .period = 2},
          Case{.name = "static", .kind = Kind::kStatic},
          Case{.name = "given", .kind = Kind::kGiven},
          Case{.name = "given_window", .window = 1, .kind = Kind::kGiven},
          Case{.name = "none", .kind = Kind::kNone},
          Case{.name = "newest", .uses_newest = true},
          Case{.name = "newest_period", .period = 3, .uses_newest = true},
          Case{.name = "newest_none", .kind = Kind::kNone, .uses_newest = true},
          Case{.name = "sum", .has_delta = false, .uses_newest = true},
          Case{.name = "decode", .batch = 1, .length = 1},
          Case{.name = "odd", .batch = 3, .length = 7, .width = 37},
          Case{.name = "narrow", .width = 1},
          Case{.name = "no_batch", .batch = 0},
          Case{.name = "no_tokens", .length = 0, .kind = Kind::kStatic}};
}

constexpr std::int64_t kPushes = 6;

inline Sources sources_of(const Case& test, std::int64_t newest) {
  Sources sources;
  for (std::int64_t j = 0; j <= newest; ++j) {
    const bool is_read = test.window > 0 ? j == 0 || j > newest - test.window
                                         : j % test.dilation == newest % test.dilation;
    if (is_read) {
      sources.push_back(j);
    }
  }
  return sources;
}

struct Network {
  explicit Network(const Case& of_test) : test(of_test) {
    const auto leaf = [&](at::IntArrayRef shape, double scale) {
      at::Tensor x = normal(shape, parameters.size(), scale).to(test.dtype);
      x.set_requires_grad(!test.trained.has_value() || *test.trained == parameters.size());
      parameters.push_back(x);
      return x;
    };
    const double scale = test.gain / std::sqrt(static_cast<double>(test.width));
    first = leaf({test.batch, test.length, test.width}, 1.0);
    for (std::int64_t i = 1; i <= kPushes; ++i) {
      blocks.push_back(leaf({test.width, test.width}, scale));
      const auto count = static_cast<std::int64_t>(sources_of(test, i).size());
      DepthWeights made;
      made.gelu = test.gelu;
      if (test.kind == Kind::kGenerated && i % test.period == 0) {
        made.w1 = leaf({7, test.width}, scale).t();
        made.w2 = test.lies_as_linear ? leaf({test.ways * count, 7}, 0.2).t()
                                      : leaf({7, test.ways * count}, 0.2);
      }
      if (test.kind != Kind::kNone && i % test.period == 0) {
        made.bias = test.kind == Kind::kGiven
                        ? leaf({test.ways, test.batch, test.length, count}, 0.3)
                        : leaf({test.ways, count}, 0.3);
      }
      weights.push_back(made);
    }
  }

  // The last stream carries on, the others enter a product; likewise the newest state.
  at::Tensor run(Depth& depth, std::int64_t pushes = kPushes) const {
    Tensors streams(static_cast<std::size_t>(test.ways), first);
    at::Tensor loss = at::zeros({}, first.options());
    for (std::int64_t i = 1; i <= pushes; ++i) {
      const auto block = static_cast<std::size_t>(i - 1);
      at::Tensor product = at::matmul(streams[0], blocks[block]);
      for (const at::Tensor& stream : streams) {
        product = at::tanh(product * (1.0 + stream));
      }
      const at::Tensor& base = streams.back();
      DepthStep step = test.has_delta
                           ? depth.push(base, product, weights[block], sources_of(test, i))
                           : depth.push(base + product, {}, weights[block], sources_of(test, i));
      std::fill(streams.begin(), streams.end(), step.newest);
      std::copy(step.streams.begin(), step.streams.end(), streams.begin());
      loss = loss + (test.uses_newest ? 0.1 * step.newest.square().sum() : 0.0 * loss);
    }
    for (std::size_t way = 0; way < streams.size(); ++way) {
      loss = loss + static_cast<double>(way + 1) * streams[way].sin().sum();
    }
    return loss;
  }

  at::Tensor run_ours() const {
    Ours ours(kPushes + 1, first);
    return run(ours);
  }

  at::Tensor run_definition() const {
    Definition definition(first);
    return run(definition);
  }

  Case test;
  Tensors parameters;
  at::Tensor first;
  Tensors blocks;
  std::vector<DepthWeights> weights;
};

inline Tensors gradients_of(const at::Tensor& loss, const Tensors& inputs, bool keeps = false) {
  return torch::autograd::grad({loss}, inputs, {}, keeps, false, /*allow_unused=*/true);
}

inline at::Tensor or_zeros(const at::Tensor& grad, const at::Tensor& like) {
  return grad.defined() ? grad : at::zeros(like.sizes(), like.options());
}

// Both networks do the same few thousand operations on numbers of order one, in another order.
inline void expect_close(const Tensors& got, const Tensors& wanted, const Tensors& like,
                         double bound) {
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const at::Tensor exact = or_zeros(wanted[i], like[i]).to(at::kDouble);
    const at::Tensor error = (or_zeros(got[i], like[i]).to(at::kDouble) - exact).abs();
    if (error.numel() > 0) {
      const double size = std::max(1.0, exact.abs().max().item<double>());
      EXPECT_LE(error.max().item<double>(), bound * size) << "tensor " << i;
    }
  }
}

}  // namespace paperlab::ops::depth_test
