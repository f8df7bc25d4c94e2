#include "paperlab/regular_language/max_margin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab::regular_language {
namespace {

using Values = std::vector<double>;

struct Data {
  Values features;  // [N, D]
  Values labels;    // [N]

  std::size_t size() const { return features.size() / labels.size(); }

  void add(const Values& row, double label) {
    features.insert(features.end(), row.begin(), row.end());
    labels.push_back(label);
  }
};

double normal(std::mt19937_64& random) { return std::normal_distribution<double>()(random); }

Values normal_vector(std::size_t size, std::mt19937_64& random) {
  Values v(size);
  for (double& x : v) x = normal(random);
  return v;
}

long double signed_dot(const Data& data, std::size_t n, const Values& v) {
  long double sum = 0;
  for (std::size_t d = 0; d < v.size(); ++d) {
    sum += static_cast<long double>(data.features[n * v.size() + d]) * v[d];
  }
  return data.labels[n] * sum;
}

long double norm(const Values& v) {
  long double sum = 0;
  for (const double x : v) sum += static_cast<long double>(x) * x;
  return std::sqrt(sum);
}

double cosine(const Values& a, const Values& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0) /
         static_cast<double>(norm(a) * norm(b));
}

// What every result promises, whatever the data.
MaxMargin checked(const Data& data) {
  const MaxMargin result = max_margin(data.features, data.labels);
  EXPECT_EQ(result.direction.size(), data.size());
  long double least = std::numeric_limits<long double>::infinity();
  for (std::size_t n = 0; n < data.labels.size(); ++n) {
    least = std::min(least, signed_dot(data, n, result.direction));
  }
  EXPECT_EQ(result.margin, static_cast<double>(least));
  EXPECT_GT(result.margin, 0.0);
  EXPECT_NEAR(static_cast<double>(norm(result.direction)), 1.0, 2e-14);
  EXPECT_GE(result.gap, 0.0);
  EXPECT_LE(result.gap, 1e-10);
  return result;
}

template <class E>
void expect_error(const Data& data, const std::vector<std::string>& parts) {
  try {
    max_margin(data.features, data.labels);
    ADD_FAILURE() << "no error";
  } catch (const E& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("max_margin: ", 0), 0U) << message;
    for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

// 1 / |v| of argmin |v| s.t. y <v, z> >= 1, by Hildreth's dual coordinate ascent.
double hildreth_margin(const Data& data) {
  const std::size_t size = data.size();
  Values v(size, 0.0);
  Values alpha(data.labels.size(), 0.0);
  for (int sweep = 0; sweep < 200000; ++sweep) {
    double moved = 0;
    for (std::size_t n = 0; n < alpha.size(); ++n) {
      const double* row = data.features.data() + n * size;
      const double square = std::inner_product(row, row + size, row, 0.0);
      const double violation = 1 - static_cast<double>(signed_dot(data, n, v));
      const double step = std::max(0.0, alpha[n] + violation / square) - alpha[n];
      alpha[n] += step;
      for (std::size_t d = 0; d < size; ++d) v[d] += step * data.labels[n] * row[d];
      moved = std::max(moved, std::abs(step) * std::sqrt(square) / (1.0 + alpha[n]));
    }
    if (moved < 1e-12) break;
  }
  return static_cast<double>(1 / norm(v));
}

// Exact for integers; a margin above .02 |row| is found within 2500 updates.
bool perceptron_separates(const Data& data) {
  Values v(data.size(), 0.0);
  for (int updates = 0; updates < 100000; ++updates) {
    std::size_t n = 0;
    while (n < data.labels.size() && signed_dot(data, n, v) > 0) ++n;
    if (n == data.labels.size()) return true;
    for (std::size_t d = 0; d < v.size(); ++d) {
      v[d] += data.labels[n] * data.features[n * v.size() + d];
    }
  }
  return false;
}

// Rows whose component along a random unit vector is `margin` or more: all of them are separable.
Data planted(std::size_t n, std::size_t size, double margin, double spread,
             std::mt19937_64& random) {
  Values v = normal_vector(size, random);
  const double length = static_cast<double>(norm(v));
  for (double& x : v) x /= length;
  Data data;
  for (std::size_t i = 0; i < n; ++i) {
    Values row = normal_vector(size, random);
    for (double& x : row) x /= std::sqrt(static_cast<double>(size));
    const double label = normal(random) > 0 ? 1.0 : -1.0;
    const double along = label * (margin + spread * std::abs(normal(random))) -
                         std::inner_product(row.begin(), row.end(), v.begin(), 0.0);
    for (std::size_t d = 0; d < size; ++d) row[d] += along * v[d];
    data.add(row, label);
  }
  return data;
}

Data permuted(const Data& data, const std::vector<std::size_t>& order) {
  Data result;
  for (const std::size_t n : order) {
    const auto row = data.features.begin() + static_cast<std::ptrdiff_t>(n * data.size());
    result.add({row, row + static_cast<std::ptrdiff_t>(data.size())}, data.labels[n]);
  }
  return result;
}

int token(unsigned string, int position) { return static_cast<int>(string >> (position - 1)) & 1; }

// A string of `length` tokens, labelled by whether the token at `target` equals the last one. Its
// attention has the logit +-logit at `target` and 0 elsewhere; like the trained model it prefers an
// equal token at position 1 and an unequal one at later targets.
void add_string(Data& data, unsigned string, int length, int target, int max_length, double logit) {
  const bool equal = token(string, target) == token(string, length);
  Values row(2 * static_cast<std::size_t>(max_length), 0.0);
  const double score = std::exp(equal == (target == 1) ? logit : -logit);
  const double total = score + length - 1;
  for (int l = 1; l <= length; ++l) {
    row[2 * static_cast<std::size_t>(l - 1) + static_cast<std::size_t>(token(string, l))] =
        (l == target ? score : 1.0) / total;
  }
  data.add(row, equal ? 1.0 : -1.0);
}

Data even_pairs(int max_length, double logit) {
  Data data;
  for (int length = 1; length <= max_length; ++length) {
    for (unsigned s = 0; s < 1U << length; ++s) add_string(data, s, length, 1, max_length, logit);
  }
  return data;
}

Data parity_cot(int base_length, double logit) {
  const int max_length = 2 * base_length - 2;
  Data data;
  for (int length = 1; length < base_length; ++length) {
    for (unsigned s = 0; s < 1U << length; ++s) add_string(data, s, length, 1, max_length, logit);
  }
  for (unsigned s = 0; s < 1U << base_length; ++s) {
    unsigned string = s;
    for (int length = base_length; length <= max_length; ++length) {
      const int target = length - base_length + 1;
      add_string(data, string, length, target, max_length, logit);
      if (token(string, target) != token(string, length)) string |= 1U << length;
    }
  }
  return data;
}

// The hard-attention limit: one-hot features.
Data one_hot(std::size_t size, const std::vector<std::size_t>& positive,
             const std::vector<std::size_t>& negative) {
  Data data;
  Values row(size, 0.0);
  for (const auto* indices : {&positive, &negative}) {
    for (const std::size_t i : *indices) {
      row[i] = 1;
      data.add(row, indices == &positive ? 1.0 : -1.0);
      row[i] = 0;
    }
  }
  return data;
}

TEST(MaxMargin, HardAttentionLimits) {
  const auto pairs = checked(one_hot(12, {0, 1, 0}, {2, 3, 3}));
  EXPECT_NEAR(pairs.margin, 0.5, 1e-15);
  const auto cot = checked(one_hot(12, {0, 1}, {2, 3, 4, 5}));
  EXPECT_NEAR(cot.margin, 1 / std::sqrt(6.0), 1e-15);
  const Values pairs_sign = {1, 1, -1, -1};
  const Values cot_sign = {1, 1, -1, -1, -1, -1};
  for (std::size_t d = 0; d < 12; ++d) {
    EXPECT_NEAR(pairs.direction[d], d < 4 ? pairs_sign[d] / 2 : 0.0, 1e-15);
    EXPECT_NEAR(cot.direction[d], d < 6 ? cot_sign[d] / std::sqrt(6.0) : 0.0, 1e-15);
  }
}

TEST(MaxMargin, SingleConstraintIsItsOwnDirection) {
  const auto result = checked({{3.0, 0.0, -4.0}, {-1.0}});
  EXPECT_NEAR(result.margin, 5.0, 1e-14);
  EXPECT_NEAR(result.direction[0], -0.6, 1e-15);
  EXPECT_NEAR(result.direction[2], 0.8, 1e-15);
  EXPECT_EQ(result.direction[1], 0.0);
  EXPECT_EQ(checked({{-7.0}, {-1.0}}).margin, 7.0);
  EXPECT_EQ(checked({{2.0, -5.0, 3.0}, {1.0, -1.0, 1.0}}).margin, 2.0);
}

TEST(MaxMargin, AgreesWithDualCoordinateAscent) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 400; ++i) {
    const std::size_t n = 1 + random() % 23;
    const std::size_t size = 1 + random() % 13;
    const double margin = 0.05 + 0.01 * static_cast<double>(random() % 50);
    const Data data = planted(n, size, margin, 0.5, random);
    const double expected = hildreth_margin(data);
    EXPECT_NEAR(checked(data).margin, expected, 1e-8 * expected) << n << " x " << size;
  }
}

TEST(MaxMargin, EveryRowOnTheMargin) {
  std::mt19937_64 random(2);
  for (const double margin : {1.0, 1e-2, 1e-4, 1e-6}) {
    for (const std::size_t size : {2U, 5U, 12U, 31U}) {
      const Data data = planted(10 * size, size, margin, 0.0, random);
      EXPECT_NEAR(checked(data).margin, margin, 1e-14 + 1e-10 * margin);
    }
  }
  for (const std::size_t size : {2U, 5U, 12U, 20U}) {
    checked(planted(10 * size, size, 2e-7, 1e-7, random));
  }
}

TEST(MaxMargin, SmallIntegersWithTies) {
  std::mt19937_64 random(3);
  int separable = 0;
  for (int i = 0; i < 500; ++i) {
    const std::size_t size = 1 + random() % 6;
    Data data;
    for (std::size_t n = 1 + random() % 9; n > 0; --n) {
      Values row(size);
      for (double& x : row) x = static_cast<double>(random() % 5) - 2;
      data.add(row, random() % 2 == 0 ? 1.0 : -1.0);
    }
    try {
      const double margin = checked(data).margin;
      EXPECT_NEAR(margin, hildreth_margin(data), 1e-7 * margin);
      ++separable;
    } catch (const ValueError& error) {
      EXPECT_FALSE(perceptron_separates(data)) << error.what();
    }
  }
  EXPECT_GT(separable, 100);
  EXPECT_LT(separable, 450);
}

TEST(MaxMargin, NearlyUniformAttention) {
  double last = 1;
  for (const double logit : {3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003}) {
    const auto pairs = checked(even_pairs(6, logit));
    EXPECT_LT(pairs.margin, last);
    last = pairs.margin;
    for (std::size_t l = 0; l < 6; ++l) {
      EXPECT_NEAR(pairs.direction[2 * l], pairs.direction[2 * l + 1], 1e-9);
    }
    for (const int base_length : {2, 3, 4}) {
      const auto cot = checked(parity_cot(base_length, logit));
      EXPECT_LE(cot.margin, 1 / std::sqrt(6.0) + (base_length < 4 ? 1.0 : 0.0));
    }
  }
  EXPECT_GT(last, 1e-6);
  const Data moderate = even_pairs(5, 1.0);
  EXPECT_NEAR(checked(moderate).margin, hildreth_margin(moderate), 1e-8);
}

TEST(MaxMargin, OrderAndCopiesOfRowsDoNotMatter) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 50; ++i) {
    const Data data = planted(3 + random() % 40, 1 + random() % 9, 0.01, 0.3, random);
    const auto expected = checked(data);
    std::vector<std::size_t> order(data.labels.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    order.insert(order.end(), order.begin(), order.end());
    order.resize(order.size() / 2 + random() % (order.size() / 2));
    std::shuffle(order.begin(), order.end(), random);
    const auto result = checked(permuted(data, order));
    EXPECT_NEAR(result.margin, expected.margin, 1e-12 * expected.margin);
    EXPECT_GT(cosine(result.direction, expected.direction), 1 - 1e-14);
  }
}

TEST(MaxMargin, PowersOfTwoScaleExactly) {
  std::mt19937_64 random(5);
  for (const int exponent : {-900, -40, -1, 3, 60, 900}) {
    const Data data = planted(37, 7, 0.01, 0.2, random);
    Data scaled = data;
    for (double& z : scaled.features) z = std::ldexp(z, exponent);
    const auto expected = checked(data);
    const auto result = checked(scaled);
    EXPECT_EQ(result.margin, std::ldexp(expected.margin, exponent));
    EXPECT_EQ(result.direction, expected.direction);
    EXPECT_EQ(result.gap, expected.gap);
  }
}

TEST(MaxMargin, RowsOfVeryDifferentNorms) {
  // u1 >= 1e8 and u2 - u1 >= 1 are both tight.
  const auto result = checked({{1e-8, 0, -1, 1}, {1, 1}});
  EXPECT_NEAR(result.margin, 1e-8 * std::sqrt(0.5), 1e-16);
  const auto lone = checked({{1e-30, 0, 1, 1}, {1, 1}});
  EXPECT_NEAR(lone.margin, 1e-30, 1e-45);
  std::mt19937_64 random(6);
  for (int i = 0; i < 300; ++i) {
    const std::size_t size = 1 + random() % 12;
    const double margin = std::pow(10.0, -static_cast<double>(1 + i % 6));
    Data data = planted(1 + random() % 60, size, margin, 3 * margin, random);
    for (std::size_t n = 0; n < data.labels.size(); ++n) {
      const double scale = std::pow(10.0, -static_cast<double>(random() % 9));
      for (std::size_t d = 0; d < size; ++d) data.features[n * size + d] *= scale;
    }
    checked(data);
  }
}

TEST(MaxMargin, LargeProblems) {
  std::mt19937_64 random(7);
  checked(planted(20000, 12, 1e-3, 1.0, random));
  checked(planted(151, 150, 1e-3, 0.1, random));
}

TEST(MaxMargin, NotSeparable) {
  const std::vector<std::string> parts = {"features", "labels", "separable"};
  expect_error<ValueError>({{1, 2, -1, -2}, {1, 1}}, parts);
  expect_error<ValueError>({{1, 2, 3, 1, 2, 3}, {1, -1}}, parts);
  expect_error<ValueError>({{1, 2, 0, 0}, {1, 1}}, parts);
  expect_error<ValueError>({{0}, {-1}}, parts);
  expect_error<ValueError>({{0.1, 0.7, 0.1 * 3, 0.7 * 3}, {1, -1}}, parts);
  expect_error<ValueError>({{1e-8, 0, 1, 0, -1, 0}, {1, 1, 1}}, parts);
  for (const int max_length : {2, 3, 4, 5, 6, 7})
    expect_error<ValueError>(even_pairs(max_length, 0), parts);
  for (const int base_length : {2, 3, 4})
    expect_error<ValueError>(parity_cot(base_length, 0), parts);
  std::mt19937_64 random(8);
  for (const std::size_t size : {1U, 3U, 10U, 40U}) {
    Data data{normal_vector(5 * size * size + 20 * size, random), {}};
    for (std::size_t n = 0; n < 5 * size + 20; ++n) data.labels.push_back(n % 2 == 0 ? 1.0 : -1.0);
    expect_error<ValueError>(data, parts);
    for (std::size_t i = 0; i < data.features.size(); ++i) {
      data.features[i] *= std::pow(10.0, -static_cast<double>(i / size % 9));
    }
    expect_error<ValueError>(data, parts);
  }
}

TEST(MaxMargin, RejectsMalformedInput) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  expect_error<ShapeError>({{}, {}}, {"labels"});
  expect_error<ShapeError>({{1, 2}, {}}, {"labels"});
  expect_error<ShapeError>({{}, {1}}, {"features", "0 values"});
  expect_error<ShapeError>({{1, 2, 3}, {1, 1}}, {"features", "3 values"});
  for (const double label : {0.0, 2.0, -1.5, nan, infinity}) {
    expect_error<ValueError>({{1, 2}, {1, label}}, {"labels must be +-1"});
  }
  for (const double feature : {nan, infinity, -infinity}) {
    expect_error<ValueError>({{1, feature}, {1, 1}}, {"features must be finite"});
  }
}

}  // namespace
}  // namespace paperlab::regular_language
