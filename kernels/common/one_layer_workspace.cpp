#include "kernels/common/one_layer_workspace.h"

#include <algorithm>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab::kernels {

OneLayerWorkspace::OneLayerWorkspace(int max_length)
    : max_length_(max_length), stride_(static_cast<std::size_t>((2 * max_length + 7) / 8 * 8)) {
  const std::size_t size = 2 * static_cast<std::size_t>(max_length) * stride_;
  e_.resize(size);
  eu_.resize(size);
  sums_.resize(size);
}

std::size_t OneLayerWorkspace::row(int length, int query) const {
  return static_cast<std::size_t>(embedding_index(length - 1, query)) * stride_;
}

bool OneLayerWorkspace::begin(const OneLayerParameters& parameters, TableBuilder build) {
  if (parameters.max_length <
      max_length_) {  // the text is made here alone: a step allocates nothing
    throw ValueError("one_layer: parameters.max_length must be at least " +
                     std::to_string(max_length_) + ", got " +
                     std::to_string(parameters.max_length));
  }
  std::fill(sums_.begin(), sums_.end(), Marginal{0.0, 0.0});
  double spread = 0.0;
  for (int length = 1; length <= max_length_; ++length) {
    for (int query = 0; query < 2; ++query) {
      const std::ptrdiff_t column = embedding_index(length - 1, query);
      const double of_query =
          build(parameters.w + column * 2 * parameters.max_length, parameters.u, 2 * length,
                embedding_index(length - 1, 1 - query), parameters.attention_scale,
                e_.data() + row(length, query), eu_.data() + row(length, query));
      spread = std::max(spread, of_query);
    }
  }
  return spread <= kMaxSpread;
}

QueryTable OneLayerWorkspace::table(int length, int query) const {
  return {e_.data() + row(length, query), eu_.data() + row(length, query)};
}

std::span<Marginal> OneLayerWorkspace::sums(int length, int query) {
  return {sums_.data() + row(length, query), static_cast<std::size_t>(2 * length)};
}

void OneLayerWorkspace::add(int length, int query, std::span<const Marginal> part) {
  const std::span<Marginal> to = sums(length, query);
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i].q += part[i].q;
    to[i].r += part[i].r;
  }
}

void OneLayerWorkspace::finish(const OneLayerParameters& parameters,
                               const OneLayerGradient& gradient) const {
  const int width = 2 * parameters.max_length;
  std::fill_n(gradient.u, width, 0.0);
  std::fill_n(gradient.w, static_cast<std::ptrdiff_t>(width) * width, 0.0);
  for (int length = 1; length <= max_length_; ++length) {
    const std::size_t at[2] = {row(length, 0), row(length, 1)};
    for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(length); ++i) {
      gradient.u[i] +=
          u_gradient(e_[at[0] + i], sums_[at[0] + i]) + u_gradient(e_[at[1] + i], sums_[at[1] + i]);
    }
    for (int query = 0; query < 2; ++query) {
      double* w =
          gradient.w + static_cast<std::ptrdiff_t>(embedding_index(length - 1, query)) * width;
      for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(length); ++i) {
        w[i] = w_gradient(e_[at[query] + i], parameters.u[i], sums_[at[query] + i],
                          parameters.attention_scale);
      }
    }
  }
}

std::size_t OneLayerWorkspace::num_bytes() const {
  return (e_.capacity() + eu_.capacity()) * sizeof(double) + sums_.capacity() * sizeof(Marginal);
}

}  // namespace paperlab::kernels
