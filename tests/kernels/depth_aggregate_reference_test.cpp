// The definitions of depth_aggregate, arguments that are refused, and how tokens are cut.

#include "kernels/depth_aggregate/depth_aggregate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/depth_aggregate/tile.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/depth_aggregate_cases.h"
#include "tests/kernels/depth_aggregate_exact.h"

namespace paperlab::kernels::depth_test {
namespace {

// Central differences in float64: the loss is the sum of the streams times their gradients.
double loss_of(Case& of) {
  depth_step(of.step(), of.generated(), of.out_at.data(), serial_executor());
  double loss = 0.0;
  for (std::size_t way = 0; way < of.out.size(); ++way) {
    for (std::int64_t i = 0; i < of.out[way].count(); ++i) {
      loss += of.out[way].at(i) * of.grad_out[way].at(i);
    }
  }
  return loss;
}

void expect_slopes(Case& of, Numbers& values, const Numbers& gradient, const char* name) {
  for (std::int64_t i = 0; i < values.count(); ++i) {
    constexpr double kStep = 1e-5;
    const double value = values.at(i);
    values.set(i, value + kStep);
    const double above = loss_of(of);
    values.set(i, value - kStep);
    const double below = loss_of(of);
    values.set(i, value);
    const double slope = (above - below) / (2.0 * kStep);
    EXPECT_NEAR(gradient.at(i), slope, 1e-7 * (1.0 + std::fabs(slope))) << name << " " << i;
  }
}

TEST(DepthAggregateReferenceTest, GradientsAreSlopes) {
  for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
    Case of(DType::kFloat64, {2, 3, 3, 2, 4});
    of.gelu = gelu;
    of.run_step(serial_executor());
    const Case gradients = of;
    for (std::size_t source = 0; source < 3; ++source) {
      expect_slopes(of, of.sources[source], gradients.grad_sources[source], "source");
    }
    expect_slopes(of, of.w1, gradients.grad_w1, "w1");
    expect_slopes(of, of.w2, gradients.grad_w2, "w2");
    expect_slopes(of, of.bias, gradients.grad_bias, "bias");
  }
}

// The references themselves read every dtype.
TEST(DepthAggregateReferenceTest, EveryDTypeIsWithinTheBound) {
  for (const DType dtype : kDTypes) {
    Case of(dtype, {5, 19, 4, 3, 10});
    connection_weights_reference(of.generator(), of.generated());
    const ExactWeights exact(of);
    expect_close(of.z, exact.z, 19.0, of.statistics, of.statistics, "z");
    expect_close(of.weights, exact.weights, 10.0, of.statistics, of.statistics, "weights");
    depth_aggregate_reference(of.sum(), of.out_at.data());
    depth_aggregate_backward_reference(of.sum(), of.sum_gradients());
    for (std::size_t way = 0; way < 3; ++way) {
      expect_close(of.out[way], exact_stream(of, static_cast<std::int64_t>(way)), 4.0,
                   of.statistics, dtype, "out");
    }
    for (std::size_t source = 0; source < 4; ++source) {
      expect_close(of.grad_sources[source],
                   exact_grad_source(of, nullptr, static_cast<std::int64_t>(source)), 3.0,
                   of.statistics, dtype, "grad_source");
    }
    expect_close(of.grad_weights, exact_grad_weights(of), 19.0, of.statistics, of.statistics,
                 "grad_weights");
    ConnectionWeightsGradients gradients = of.generator_gradients();
    gradients.grad_x = of.grad_source_at.back();
    connection_weights_backward_reference(of.generator(), gradients);
    const ExactGradients of_generator(of);
    expect_close(of.grad_sources.back(), of_generator.x, 40.0, of.statistics, dtype, "grad_x");
    expect_close(of.grad_w1, of_generator.w1, 40.0, of.statistics, dtype, "grad_w1");
    expect_close(of.grad_w2, of_generator.w2, 40.0, of.statistics, dtype, "grad_w2");
    expect_close(of.grad_bias, of_generator.bias, 40.0, of.statistics, dtype, "grad_bias");
  }
}

TEST(DepthAggregateArgumentsTest, WrongShapesAreRefused) {
  Case of(DType::kFloat32, {2, 4, 3, 2, 5});
  for (std::int64_t DepthAggregate::* member :
       {&DepthAggregate::width, &DepthAggregate::num_sources, &DepthAggregate::num_ways}) {
    DepthAggregate sum = of.sum();
    sum.*member = 0;
    EXPECT_THROW(depth_aggregate(sum, of.out_at.data(), serial_executor()), ShapeError);
    EXPECT_THROW(depth_aggregate_backward(sum, of.sum_gradients(), serial_executor()), ShapeError);
  }
  ConnectionWeights generator = of.generator();
  generator.num_weights = 0;
  EXPECT_THROW(connection_weights(generator, of.generated(), serial_executor()), ShapeError);
  generator = of.generator();
  generator.num_tokens = -1;
  EXPECT_THROW(
      connection_weights_backward(generator, of.generator_gradients(), gemm, serial_executor()),
      ShapeError);
  DepthStep step = of.step();
  step.generator.num_weights = 5;
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), serial_executor()), ShapeError);
}

TEST(DepthAggregateArgumentsTest, WrongValuesAreRefused) {
  Case of(DType::kFloat32, {2, 4, 3, 2, 5});
  EXPECT_THROW(depth_aggregate_backward(of.sum(), of.sum_gradients(4), serial_executor()),
               ValueError);
  EXPECT_THROW(depth_step_backward(of.step(), of.step_gradients(-1), gemm, serial_executor()),
               ValueError);
  ConnectionWeights generator = of.generator();
  for (const double eps : {0.0, -1.0, kNaN}) {
    generator.eps = eps;
    EXPECT_THROW(connection_weights(generator, of.generated(), serial_executor()), ValueError);
  }
  DepthAggregate sum = of.sum();
  sum.weights_dtype = DType::kFloat64;
  EXPECT_THROW(depth_aggregate(sum, of.out_at.data(), serial_executor()), ValueError);
  DepthStep step = of.step();
  step.generator.x = of.source_at[0];
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), serial_executor()), ValueError);
  step = of.step();
  step.base = of.source_at[0];
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), serial_executor()), ValueError);
  step = of.step();
  step.aggregate.weights = of.grad_weights.data();
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), serial_executor()), ValueError);
}

TEST(DepthAggregateTileTest, BlocksHoldEveryTokenOnceInOrder) {
  for (const std::int64_t count : {0, 1, 17, 513, 9000}) {
    for (const std::int64_t width : {1, 64, 1024, 40000}) {
      for (const std::int64_t size :
           {tokens_of_task(width), tokens_of_generator(width), tokens_of_pass(width)}) {
        ASSERT_GE(size, 1);
        std::int64_t next = 0;
        for (std::int64_t i = 0; i < num_blocks(count, size); ++i) {
          EXPECT_EQ(block_at(count, size, i).begin, next);
          next = block_at(count, size, i).end;
        }
        EXPECT_EQ(next, count);
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels::depth_test
