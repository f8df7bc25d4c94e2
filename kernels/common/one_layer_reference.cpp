#include "kernels/common/one_layer_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace paperlab::kernels {
namespace {

std::vector<double> softmax(std::vector<double> logits) {
  const double high = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (double& x : logits) {
    x = std::exp(x - high);
    sum += x;
  }
  for (double& x : logits) {
    x /= sum;
  }
  return logits;
}

}  // namespace

void clear_gradient(const OneLayerParameters& parameters, const OneLayerGradient& gradient) {
  const std::ptrdiff_t width = 2 * static_cast<std::ptrdiff_t>(parameters.max_length);
  std::fill_n(gradient.u, width, 0.0);
  std::fill_n(gradient.w, width * width, 0.0);
}

void add_string(const OneLayerParameters& parameters, std::span<const std::uint8_t> tokens, int y,
                double weight, const OneLayerGradient& gradient, OneLayerEvaluation& evaluation) {
  const int length = static_cast<int>(tokens.size());
  const std::ptrdiff_t query = embedding_index(length - 1, tokens.back());
  const double* w = parameters.w + query * 2 * parameters.max_length;
  const auto index = [&](int l) { return embedding_index(l, tokens[static_cast<std::size_t>(l)]); };
  std::vector<double> phi(tokens.size());
  for (int l = 0; l < length; ++l) {
    phi[static_cast<std::size_t>(l)] = w[index(l)] / parameters.attention_scale;
  }
  phi = softmax(phi);
  double t = 0.0;
  for (int l = 0; l < length; ++l) {
    t += phi[static_cast<std::size_t>(l)] * parameters.u[index(l)];
  }
  const double margin = y * t;
  const double c = -y * weight / (1.0 + std::exp(margin));
  for (int l = 0; l < length; ++l) {
    const double c_phi = c * phi[static_cast<std::size_t>(l)];
    gradient.u[index(l)] += c_phi;
    gradient.w[query * 2 * parameters.max_length + index(l)] +=
        c_phi * (parameters.u[index(l)] - t) / parameters.attention_scale;
  }
  evaluation.loss += weight * (std::max(0.0, -margin) + std::log1p(std::exp(-std::abs(margin))));
  merge(evaluation, {0.0, margin, margin > 0.0 ? 1 : 0, 1});
}

OneLayerEvaluation no_strings() { return {0.0, std::numeric_limits<double>::infinity(), 0, 0}; }

void merge(OneLayerEvaluation& to, const OneLayerEvaluation& part) {
  to.loss += part.loss;
  to.min_margin = std::min(to.min_margin, part.min_margin);
  to.num_correct += part.num_correct;
  to.num_strings += part.num_strings;
}

OneLayerEvaluation merged(std::span<const OneLayerEvaluation> parts) {
  OneLayerEvaluation total = no_strings();
  for (const OneLayerEvaluation& part : parts) {
    merge(total, part);
  }
  return total;
}

}  // namespace paperlab::kernels
