// A step as a whole: its parts, its bits, and inputs whose results are known.

#include "kernels/depth_aggregate/depth_aggregate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/depth_aggregate_cases.h"
#include "tests/kernels/depth_aggregate_exact.h"

namespace paperlab::kernels::depth_test {
namespace {

class DepthAggregateStepTest : public IsaTest {};

TEST_P(DepthAggregateStepTest, AStepIsItsParts) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(text(shape));
      Case whole(dtype, shape);
      Case parts = whole;
      Numbers base = Numbers::random(dtype, shape.n * shape.d, 20, 1.0);
      Numbers delta = Numbers::random(dtype, shape.n * shape.d, 21, 1.0);
      for (std::int64_t i = 0; i < base.count(); ++i) {
        parts.sources.back().set(i, base.at(i) + delta.at(i));
      }
      whole.sources.back() = Numbers(dtype, shape.n * shape.d);
      whole.point();
      DepthStep step = whole.step();
      step.base = base.data();
      step.delta = delta.data();
      step.newest = whole.sources.back().data();
      depth_step(step, whole.generated(), whole.out_at.data(), *default_executor());
      depth_step_backward(step, whole.step_gradients(), gemm, *default_executor());
      EXPECT_TRUE(whole.sources.back() == parts.sources.back());
      connection_weights(parts.generator(), parts.generated(), *default_executor());
      depth_aggregate(parts.sum(), parts.out_at.data(), *default_executor());
      depth_aggregate_backward(parts.sum(), parts.sum_gradients(), *default_executor());
      ConnectionWeightsGradients gradients = parts.generator_gradients();
      gradients.grad_x = parts.grad_source_at.back();
      gradients.adds_to_grad_x = true;
      connection_weights_backward(parts.generator(), gradients, gemm, *default_executor());
      EXPECT_TRUE(same_results(whole, parts));
    }
  }
}

TEST_P(DepthAggregateStepTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const Shape& shape :
         {Shape{700, 70, 5, 4, 20}, Shape{9000, 3, 2, 1, 2}, Shape{61, 1040, 3, 2, 6}}) {
      Case one(dtype, shape);
      Case two = one;
      Case three = one;
      one.run_step(serial_executor());
      two.run_step(ThreadPool(2));
      three.run_step(ThreadPool(3));
      EXPECT_TRUE(same_results(one, two) && same_results(one, three)) << text(shape);
    }
  }
}

TEST_P(DepthAggregateStepTest, OrderOfTheSourcesIsFree) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, {7, 65, 6, 4, 24});
  Case turned = of;  // the newest stays where it is
  const std::int64_t order[] = {3, 0, 4, 1, 2, 5};
  for (std::int64_t i = 0; i < 6; ++i) {
    turned.sources[static_cast<std::size_t>(i)] = of.sources[static_cast<std::size_t>(order[i])];
    for (std::int64_t row = 0; row < 100; ++row) {  // of w2 and, last, of the bias
      Numbers& to = row < 96 ? turned.w2 : turned.bias;
      const Numbers& from = row < 96 ? of.w2 : of.bias;
      to.set(row % 96 * 6 + i, from.at(row % 96 * 6 + order[i]));
    }
  }
  turned.point();
  of.run_step(serial_executor());
  turned.run_step(serial_executor());
  for (std::int64_t way = 0; way < 4; ++way) {
    expect_close(turned.out[static_cast<std::size_t>(way)], exact_stream(of, way), 6.0,
                 DType::kFloat32, DType::kFloat32, "out");
  }
}

TEST_P(DepthAggregateStepTest, OneHotWeightsGiveTheNewestStateItself) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {9, 50, 5, 4, 20});
    of.w2.fill(0.0);
    for (std::int64_t i = 0; i < 20; ++i) {
      of.bias.set(i, i % 5 == 4 ? 1.0 : 0.0);
    }
    of.run_step(serial_executor());
    for (const Numbers& stream : of.out) {
      EXPECT_TRUE(stream == of.sources.back());
    }
    for (std::int64_t i = 0; i < of.grad_w1.count(); ++i) {
      EXPECT_EQ(of.grad_w1.at(i), 0.0);
    }
  }
}

TEST_P(DepthAggregateStepTest, AStateOfZerosHasTheBiasAsWeights) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {4, 20, 2, 3, 6});
    of.sources.back().fill(0.0);
    of.run_step(serial_executor());
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(of.weights.at(i), of.bias.at(i % 6));
    }
    for (const Numbers* result : of.results()) {
      for (std::int64_t i = 0; i < result->count(); ++i) {
        EXPECT_TRUE(std::isfinite(result->at(i)));
      }
    }
  }
}

TEST_P(DepthAggregateStepTest, NanStaysWhereItIs) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {5, 40, 4, 2, 8});
    of.sources[1].set(87, kNaN);  // token 2
    depth_step(of.step(), of.generated(), of.out_at.data(), serial_executor());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87);
      }
    }
    of.sources[3].set(160, kNaN);  // the newest: all weights of its token
    depth_step(of.step(), of.generated(), of.out_at.data(), serial_executor());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87 || i >= 160);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, DepthAggregateStepTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

}  // namespace
}  // namespace paperlab::kernels::depth_test
