// The weights that tokens generate, and their gradients.

#include "kernels/depth_aggregate/depth_aggregate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/depth_aggregate/tile.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/depth_aggregate_cases.h"
#include "tests/kernels/depth_aggregate_exact.h"

namespace paperlab::kernels::depth_test {
namespace {

class DepthAggregateGeneratorTest : public IsaTest {};

TEST_P(DepthAggregateGeneratorTest, TheGeneratorIsWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
        SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
        Case of(dtype, shape);
        of.gelu = gelu;
        of.weights = Numbers(of.statistics, of.weights.count());
        connection_weights(of.generator(), of.generated(), *default_executor());
        const ExactWeights exact(of);
        expect_close(of.z, exact.z, static_cast<double>(shape.d), of.statistics, of.statistics,
                     "z");
        expect_close(of.weights, exact.weights, static_cast<double>(shape.k), of.statistics,
                     of.statistics, "weights");
      }
    }
  }
}

void expect_right_generator_gradients(Case& of) {
  connection_weights(of.generator(), of.generated(), *default_executor());
  of.grad_weights = Numbers::random(of.statistics, of.grad_weights.count(), 5, 1.0);
  ConnectionWeightsGradients gradients = of.generator_gradients();
  gradients.grad_x = of.grad_source_at.back();
  connection_weights_backward(of.generator(), gradients, gemm, *default_executor());
  const ExactGradients exact(of);
  // The state's gradient uses mean(dN N) = dZ Z / D: sums of C J, K and D products.
  const auto per_token = static_cast<double>(of.num_weights() + of.shape.k + of.shape.d);
  const double terms = per_token + static_cast<double>(of.shape.n);
  expect_close(of.grad_sources.back(), exact.x, per_token, of.statistics, of.dtype, "grad_x");
  expect_close(of.grad_w1, exact.w1, terms, of.statistics, of.dtype, "grad_w1");
  expect_close(of.grad_w2, exact.w2, terms, of.statistics, of.dtype, "grad_w2");
  expect_close(of.grad_bias, exact.bias, terms, of.statistics, of.dtype, "grad_bias");
}

TEST_P(DepthAggregateGeneratorTest, TheGeneratorsGradientsAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
        SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
        Case of(dtype, shape);
        of.gelu = gelu;
        expect_right_generator_gradients(of);
      }
    }
  }
  Case several_passes(DType::kBFloat16, {tokens_of_pass(3) + 5, 3, 2, 1, 2});
  expect_right_generator_gradients(several_passes);
}

// Results that nobody wants are not asked for.
Numbers turned_over(const Numbers& matrix, DType dtype, std::int64_t rows, std::int64_t columns) {
  Numbers turned(dtype, rows * columns);
  for (std::int64_t i = 0; i < rows * columns; ++i) {
    turned.set(i % columns * rows + i / columns, matrix.at(i));
  }
  return turned;
}

// Bits of what tokens have do not depend on how the matrices lie.
TEST_P(DepthAggregateGeneratorTest, MatricesMayLieTurnedOver) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
      const auto& [n, d, j, c, k] = shape;
      Case of(dtype, shape);
      Case turned = of;
      turned.w1 = turned_over(of.w1, dtype, d, k);
      turned.w2 = turned_over(of.w2, dtype, k, c * j);
      DepthStep step = turned.step();
      step.generator.is_transposed = true;
      of.run_step(*default_executor());
      depth_step(step, turned.generated(), turned.out_at.data(), *default_executor());
      depth_step_backward(step, turned.step_gradients(), gemm, *default_executor());
      EXPECT_TRUE(turned.weights == of.weights && turned.z == of.z && turned.out == of.out);
      EXPECT_TRUE(turned.inverse_rms == of.inverse_rms);
      EXPECT_TRUE(turned.grad_sources == of.grad_sources && turned.grad_bias == of.grad_bias);
      const ExactGradients exact(of);
      const auto terms = static_cast<double>(of.num_weights() + k + d + n);
      expect_close(turned_over(turned.grad_w1, dtype, k, d), exact.w1, terms, of.statistics, dtype,
                   "grad_w1");
      expect_close(turned_over(turned.grad_w2, dtype, c * j, k), exact.w2, terms, of.statistics,
                   dtype, "grad_w2");
      EXPECT_TRUE(turned.grad_w1.has_guards() && turned.grad_w2.has_guards());
    }
  }
}

TEST_P(DepthAggregateGeneratorTest, ParametersWithoutGradients) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case all(dtype, {9, 33, 3, 4, 12});
    Case some = all;
    all.run_step(serial_executor());
    ConnectionWeightsResult result = some.generated();
    result.z = nullptr;
    result.inverse_rms = nullptr;
    depth_step(some.step(), result, some.out_at.data(), serial_executor());
    EXPECT_TRUE(some.out == all.out && some.weights == all.weights);
    some.run_step(serial_executor());
    some.grad_w1 = Numbers(dtype, some.grad_w1.count());
    DepthStepGradients gradients = some.step_gradients();
    gradients.generator.grad_w1 = nullptr;
    gradients.aggregate.grad_sources = nullptr;
    some.grad_w2.fill(0.0);
    depth_step_backward(some.step(), gradients, gemm, serial_executor());
    EXPECT_TRUE(some.grad_w2 == all.grad_w2 && some.grad_bias == all.grad_bias);
    EXPECT_TRUE(some.grad_w1 == Numbers(dtype, some.grad_w1.count()));
  }
}

// D 2, X = (3, 4): the numbers of the definition by hand.
TEST_P(DepthAggregateGeneratorTest, ClosedForm) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Case of(dtype, {1, 2, 2, 1, 2});
    const double values[] = {1.0, 0.0, 0.0, 1.0};
    for (std::int64_t i = 0; i < 4; ++i) {
      of.w1.set(i, values[i]);
      of.w2.set(i, values[i]);
    }
    of.bias.set(0, 0.0);
    of.bias.set(1, 1.0);
    of.sources[0].set(0, 1.0);
    of.sources[0].set(1, 0.0);
    of.sources[1].set(0, 3.0);
    of.sources[1].set(1, 4.0);
    depth_step(of.step(), of.generated(), of.out_at.data(), serial_executor());
    const double bound = dtype == DType::kFloat32 ? 2e-6 : 1e-9;
    EXPECT_NEAR(1.0 / of.inverse_rms.at(0), 3.5355340473, bound);
    EXPECT_NEAR(of.z.at(0), 0.8485281035, bound);
    EXPECT_NEAR(of.z.at(1), 1.1313708046, bound);
    EXPECT_NEAR(of.weights.at(0), 0.6804584755, bound);
    EXPECT_NEAR(of.weights.at(1), 1.9854810744, bound);
    EXPECT_NEAR(of.out[0].at(0), 6.6369016985, 4.0 * bound);
    EXPECT_NEAR(of.out[0].at(1), 7.9419242973, 4.0 * bound);
    of.gelu = GeluForm::kTanh;
    connection_weights(of.generator(), of.generated(), serial_executor());
    EXPECT_NEAR(of.weights.at(0), 0.6803587185, bound);
    EXPECT_NEAR(of.weights.at(1), 1.9852853317, bound);
  }
}

TEST_P(DepthAggregateGeneratorTest, GeluOfLargeNumbers) {
  const test::ScopedIsa isa(GetParam());
  for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
    // z runs through multiples of 0.3: w2 is 1, so the weight is gelu(z).
    Case of(DType::kFloat32, {1, 1, 1, 1, 1});
    of.gelu = gelu;
    of.w2.set(0, 1.0);
    of.bias.set(0, 0.0);
    of.sources[0].set(0, 1e6);  // 1 after the norm
    for (std::int64_t i = -100; i <= 100; ++i) {
      of.w1.set(0, 0.3 * static_cast<double>(i));
      connection_weights(of.generator(), of.generated(), serial_executor());
      const double exact = exact_gelu(of.z.at(0), gelu).value;
      // Far to the left the exponential's argument has a rounding error of z^2 ulps.
      const double relative = 0x1p-23 * (8.0 + std::pow(of.z.at(0), 2));
      const double bound =
          of.z.at(0) < 0.0 ? relative * std::fabs(exact) + 1e-30 : 4.0 * 0x1p-23 * exact;
      // The cubic form in the tanh has about three times that.
      EXPECT_NEAR(of.weights.at(0), exact, gelu == GeluForm::kTanh ? 8.0 * bound + 1e-30 : bound)
          << of.z.at(0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, DepthAggregateGeneratorTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

}  // namespace
}  // namespace paperlab::kernels::depth_test
