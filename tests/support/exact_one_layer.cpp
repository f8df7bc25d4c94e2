#include "tests/support/exact_one_layer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace paperlab::test {
namespace {

struct Attention {
  std::vector<std::size_t> keys;  // entry of u of each position
  std::size_t first_of_query;     // in w
  std::vector<long double> phi;
  double spread;
};

Attention attend(const WeightedString& string, const kernels::OneLayerParameters& parameters) {
  const std::size_t length = string.tokens.size();
  const std::size_t width = 2 * static_cast<std::size_t>(parameters.max_length);
  Attention out{{}, (2 * (length - 1) + string.tokens.back()) * width, {}, 0.0};
  for (std::size_t l = 0; l < length; ++l) {
    out.keys.push_back(2 * l + string.tokens[l]);
    out.phi.push_back(static_cast<long double>(parameters.w[out.first_of_query + out.keys[l]]) /
                      parameters.attention_scale);
  }
  const auto [low, high] = std::minmax_element(out.phi.begin(), out.phi.end());
  out.spread = static_cast<double>(*high - *low);
  const long double largest = *high;
  long double sum = 0.0L;
  for (long double& x : out.phi) {
    x = std::exp(x - largest);
    sum += x;
  }
  for (long double& x : out.phi) {
    x /= sum;
  }
  return out;
}

void add_string(const WeightedString& string, const kernels::OneLayerParameters& parameters,
                ExactOneLayer& out) {
  const Attention attention = attend(string, parameters);
  long double t = 0.0L;
  long double t_norm = 0.0L;
  for (std::size_t l = 0; l < attention.keys.size(); ++l) {
    t += attention.phi[l] * parameters.u[attention.keys[l]];
    t_norm += attention.phi[l] * std::fabs(parameters.u[attention.keys[l]]);
  }
  const long double margin = string.label * t;
  const long double c = -string.label * string.weight / (1.0L + std::exp(margin));
  const long double loss =
      string.weight * (std::max(0.0L, -margin) + std::log1p(std::exp(-std::fabs(margin))));
  out.loss += loss;
  out.loss_norm += loss + std::fabs(c) * t_norm;
  out.min_margin = std::min(out.min_margin, margin);
  out.num_correct += margin > 0.0L ? 1 : 0;
  out.sum_of_c += c;
  for (std::size_t l = 0; l < attention.keys.size(); ++l) {
    const std::size_t key = attention.keys[l];
    const long double u = parameters.u[key];
    const long double scale = parameters.attention_scale;
    const long double share = c * attention.phi[l];
    out.u[key] += share;
    out.w[attention.first_of_query + key] += share * (u - t) / scale;
    out.u_norm[key] += std::fabs(share);
    out.w_norm[attention.first_of_query + key] +=
        std::fabs(share) * (std::fabs(u) + t_norm) / scale;
    out.largest_u = std::max(out.largest_u, static_cast<double>(std::fabs(u)));
  }
  out.largest_logit = std::max(out.largest_logit, attention.spread);
}

}  // namespace

std::vector<WeightedString> strings_of(std::span<const kernels::AffineGroup> groups) {
  std::vector<WeightedString> strings;
  for (const kernels::AffineGroup& group : groups) {
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
      WeightedString string{{}, kernels::affine_label(group, i), group.weight};
      for (int l = 0; l < group.length; ++l) {
        string.tokens.push_back(static_cast<std::uint8_t>(kernels::affine_token(group, l, i)));
      }
      strings.push_back(string);
    }
  }
  return strings;
}

ExactOneLayer exact_one_layer(const std::vector<WeightedString>& strings,
                              const kernels::OneLayerParameters& parameters) {
  const std::size_t width = 2 * static_cast<std::size_t>(parameters.max_length);
  ExactOneLayer out;
  out.min_margin = std::numeric_limits<long double>::infinity();
  out.u.assign(width, 0.0L);
  out.u_norm.assign(width, 0.0L);
  out.w.assign(width * width, 0.0L);
  out.w_norm.assign(width * width, 0.0L);
  for (const WeightedString& string : strings) {
    add_string(string, parameters, out);
  }
  return out;
}

double rounding_bound(const ExactOneLayer& exact, int max_length, double sequential_adds) {
  const double of_phi = 2.0 * (3.0 * exact.largest_logit + 1.0 + max_length);
  const double ulps = of_phi * (1.0 + exact.largest_u) + 8.0 + sequential_adds;
  return ulps * std::numeric_limits<double>::epsilon();
}

}  // namespace paperlab::test
