// Every string: the loop and fold kernels behind the trainer's interface, with the embedding.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/one_layer_fold/one_layer_fold.h"
#include "kernels/one_layer_loop/one_layer_loop.h"
#include "paperlab/core/rng.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/dynamics_internal.h"

namespace paperlab::regular_language {
namespace {

// Streams of the counter-based generator.
constexpr std::uint64_t kStreamU = 0;
constexpr std::uint64_t kStreamW = 1;
constexpr std::uint64_t kStreamEmbedding = 2;

class LoopKernel {
 public:
  explicit LoopKernel(const TrainOptions& options) : plan_(packed_strings(options)) {}
  void gradient(const kernels::OneLayerParameters& at, const kernels::OneLayerGradient& out,
                const Executor& executor) {
    kernels::one_layer_loop(plan_, at, out, executor);
  }
  kernels::OneLayerEvaluation evaluate(const kernels::OneLayerParameters& at,
                                       const Executor& executor) {
    return kernels::one_layer_loop_evaluate(plan_, at, executor);
  }

 private:
  kernels::LoopPlan plan_;
};

class FoldKernel {
 public:
  explicit FoldKernel(const TrainOptions& options) : plan_(affine_groups(options)) {}
  void gradient(const kernels::OneLayerParameters& at, const kernels::OneLayerGradient& out,
                const Executor& executor) {
    kernels::one_layer_fold(plan_, at, out, executor);
  }
  kernels::OneLayerEvaluation evaluate(const kernels::OneLayerParameters& at,
                                       const Executor& executor) {
    return kernels::one_layer_fold_evaluate(plan_, at, executor);
  }

 private:
  kernels::FoldPlan plan_;
};

// Parameters are u and the transpose of W, one query's keys contiguous, as the kernels want them.
template <class Kernel>
class Exhaustive final : public Dynamics {
 public:
  Exhaustive(const TrainOptions& options, std::shared_ptr<const Executor> executor)
      : options_(options), executor_(std::move(executor)), kernel_(options) {}

  Parameters initial() const override {
    const auto width = 2 * static_cast<std::size_t>(options_.max_length);
    Parameters out{std::vector<double>(width, 0.0), std::vector<double>(width * width, 0.0)};
    if (options_.init_std > 0.0) {
      for (std::size_t i = 0; i < width; ++i) {
        out.u[i] = options_.init_std * philox_normal(options_.seed, kStreamU, i);
      }
      for (std::size_t i = 0; i < width * width; ++i) {  // drawn in the order of the public matrix
        out.w[i % width * width + i / width] =
            options_.init_std * philox_normal(options_.seed, kStreamW, i);
      }
    }
    return out;
  }

  void gradient(const Parameters& at, Parameters& out) override {
    out.u.resize(at.u.size());
    out.w.resize(at.w.size());
    kernel_.gradient(view(at), {out.u.data(), out.w.data()}, *executor_);
  }

  Evaluation evaluate(const Parameters& at) override {
    const kernels::OneLayerEvaluation all = kernel_.evaluate(view(at), *executor_);
    return {all.loss, static_cast<double>(all.num_correct) / static_cast<double>(all.num_strings),
            all.min_margin};
  }

  std::vector<double> full_u(const Parameters& at) const override { return at.u; }

  std::vector<double> full_w(const Parameters& at) const override {
    const std::size_t width = at.u.size();
    std::vector<double> w(at.w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      w[i] = at.w[i % width * width + i / width];
    }
    return w;
  }

 private:
  kernels::OneLayerParameters view(const Parameters& at) const {
    return {options_.max_length, options_.attention_scale, at.u.data(), at.w.data()};
  }

  TrainOptions options_;
  std::shared_ptr<const Executor> executor_;
  Kernel kernel_;
};

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// [embedding_dim, 2 max_length]: column 2(l-1)+s is the vector of token s at position l.
Matrix embedding_matrix(const TrainOptions& options) {
  const int width = 2 * options.max_length;
  if (options.embedding == Embedding::kGaussian) {
    Matrix e(options.embedding_dim, width);
    for (Eigen::Index i = 0; i < e.size(); ++i) {
      e.data()[i] = philox_normal(options.seed, kStreamEmbedding, static_cast<std::uint64_t>(i)) /
                    std::sqrt(static_cast<double>(options.embedding_dim));
    }
    return e;
  }
  Matrix e = Matrix::Zero(options.max_length + 2, width);
  for (int i = 0; i < width; ++i) {
    e(i % 2, i) = std::sqrt(0.5);
    e(2 + i / 2, i) = std::sqrt(0.5);
  }
  return e;
}

// u in R^d and W in R^{d x d} act through <u, E> and E^T W E; gradients come back by the chain
// rule.
class Embedded final : public Dynamics {
 public:
  Embedded(const TrainOptions& options, std::unique_ptr<Dynamics> inner)
      : options_(options), e_(embedding_matrix(options)), inner_(std::move(inner)) {}

  Parameters initial() const override {
    const auto d = static_cast<std::size_t>(e_.rows());
    Parameters out{std::vector<double>(d), std::vector<double>(d * d)};
    for (std::size_t i = 0; i < out.u.size(); ++i) {
      out.u[i] = options_.init_std * philox_normal(options_.seed, kStreamU, i);
    }
    for (std::size_t i = 0; i < out.w.size(); ++i) {
      out.w[i] = options_.init_std * philox_normal(options_.seed, kStreamW, i);
    }
    return out;
  }

  void gradient(const Parameters& at, Parameters& out) override {
    inner_->gradient(project(at), inner_gradient_);
    out.u.resize(at.u.size());
    out.w.resize(at.w.size());
    vector(out.u).noalias() = e_ * vector(inner_gradient_.u);
    const Matrix transposed = matrix(inner_gradient_.w, e_.cols());  // queries in rows
    Eigen::Map<Matrix>(out.w.data(), e_.rows(), e_.rows()).noalias() =
        e_ * transposed.transpose() * e_.transpose();
  }

  Evaluation evaluate(const Parameters& at) override { return inner_->evaluate(project(at)); }
  std::vector<double> full_u(const Parameters& at) const override {
    return inner_->full_u(project(at));
  }
  std::vector<double> full_w(const Parameters& at) const override {
    return inner_->full_w(project(at));
  }

 private:
  using Vector = Eigen::Matrix<double, Eigen::Dynamic, 1>;
  static Eigen::Map<const Vector> vector(const std::vector<double>& x) {
    return {x.data(), static_cast<Eigen::Index>(x.size())};
  }
  static Eigen::Map<Vector> vector(std::vector<double>& x) {
    return {x.data(), static_cast<Eigen::Index>(x.size())};
  }
  static Eigen::Map<const Matrix> matrix(const std::vector<double>& x, Eigen::Index rows) {
    return {x.data(), rows, rows};
  }

  Parameters project(const Parameters& at) const {
    const auto width = static_cast<std::size_t>(e_.cols());
    Parameters out{std::vector<double>(width), std::vector<double>(width * width)};
    vector(out.u).noalias() = e_.transpose() * vector(at.u);
    Eigen::Map<Matrix>(out.w.data(), e_.cols(), e_.cols()).noalias() =
        (e_.transpose() * matrix(at.w, e_.rows()) * e_).transpose();
    return out;
  }

  TrainOptions options_;
  Matrix e_;
  std::unique_ptr<Dynamics> inner_;
  Parameters inner_gradient_;
};

}  // namespace

std::unique_ptr<Dynamics> make_exhaustive(const TrainOptions& options,
                                          std::shared_ptr<const Executor> executor) {
  std::unique_ptr<Dynamics> dynamics;
  if (options.method == Method::kFold) {
    dynamics = std::make_unique<Exhaustive<FoldKernel>>(options, std::move(executor));
  } else {
    dynamics = std::make_unique<Exhaustive<LoopKernel>>(options, std::move(executor));
  }
  if (options.embedding != Embedding::kOrthonormal) {
    dynamics = std::make_unique<Embedded>(options, std::move(dynamics));
  }
  return dynamics;
}

}  // namespace paperlab::regular_language
