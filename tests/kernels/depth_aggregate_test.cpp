// The sums and their gradients against the textbook, in every dtype and instruction set.

#include "kernels/depth_aggregate/depth_aggregate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/depth_aggregate/tile.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/depth_aggregate_cases.h"
#include "tests/kernels/depth_aggregate_exact.h"

namespace paperlab::kernels::depth_test {
namespace {

class DepthAggregateTest : public IsaTest {};

void expect_right_sum(Case& of, std::int64_t num_added) {
  const DType statistics = of.statistics;
  const auto terms = static_cast<double>(of.shape.j);
  depth_aggregate(of.sum(), of.out_at.data(), *default_executor());
  for (std::int64_t way = 0; way < of.shape.c; ++way) {
    expect_close(of.out[static_cast<std::size_t>(way)], exact_stream(of, way), terms, statistics,
                 of.dtype, "out");
  }
  std::vector<Numbers> before;
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    before.push_back(Numbers::random(of.dtype, of.shape.n * of.shape.d, 300 + source, 1.0));
    if (source < num_added) {
      of.grad_sources[static_cast<std::size_t>(source)] = before.back();
    }
  }
  of.point();
  depth_aggregate_backward(of.sum(), of.sum_gradients(num_added), *default_executor());
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    const auto at = static_cast<std::size_t>(source);
    Exact exact = exact_grad_source(of, source < num_added ? &before[at] : nullptr, source);
    if (of.dtype == DType::kBFloat16 && of.shape.c > kMostWays) {
      for (double& norm : exact.norm) {  // stored twice: four ways, then the others
        norm += norm * 0x1p-8 / (eps_of(of.statistics) * 24.0);
      }
    }
    expect_close(of.grad_sources[at], exact, static_cast<double>(of.shape.c), statistics, of.dtype,
                 "grad_source");
  }
  expect_close(of.grad_weights, exact_grad_weights(of), static_cast<double>(of.shape.d), statistics,
               statistics, "grad_weights");
}

TEST_P(DepthAggregateTest, TheSumAndItsGradientsAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
      Case of(dtype, shape);
      expect_right_sum(of, shape.n % shape.j);
    }
  }
}

TEST_P(DepthAggregateTest, LargeStatesAreSummedInFloat32) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kBFloat16, {5, 70, 12, 4, 8}, 1e4);
  expect_right_sum(of, 12);
}

// Weights of all tokens alike, of either dtype, and their gradient.
TEST_P(DepthAggregateTest, StaticWeights) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : {Shape{33, 70, 5, 4, 0}, Shape{700, 64, 3, 1, 0},
                               Shape{0, 3, 2, 2, 0}, Shape{2, 1040, 9, 6, 0}}) {
      SCOPED_TRACE(text(shape));
      Case of(dtype, shape);
      for (std::int64_t i = 0; i < of.weights.count(); ++i) {
        of.weights.set(i, of.bias.at(i % of.num_weights()));
      }
      DepthStep step = of.step();
      step.aggregate.weights = of.bias.data();
      step.aggregate.weights_dtype = dtype;
      step.aggregate.token_stride = 0;
      step.generator.x = nullptr;
      of.grad_weights = Numbers(of.statistics, of.num_weights());
      depth_step(step, {}, of.out_at.data(), ThreadPool(2));
      depth_step_backward(step, of.step_gradients(), gemm, ThreadPool(2));
      Case dynamic = of;
      dynamic.grad_weights = Numbers(of.statistics, shape.n * of.num_weights());
      depth_aggregate(dynamic.sum(), dynamic.out_at.data(), serial_executor());
      depth_aggregate_backward(dynamic.sum(), dynamic.sum_gradients(), serial_executor());
      EXPECT_TRUE(of.out == dynamic.out && of.grad_sources == dynamic.grad_sources);
      Exact sums(of.num_weights());
      const Exact of_tokens = exact_grad_weights(of);
      for (std::int64_t i = 0; i < shape.n * of.num_weights(); ++i) {
        sums.add(i % of.num_weights(), of_tokens(i), of_tokens.norm_at(i));
      }
      const auto terms = static_cast<double>(shape.d + shape.n);
      expect_close(of.grad_weights, sums, terms, of.statistics, of.statistics, "grad_weights");
      expect_close(of.grad_bias, sums, terms, of.statistics, dtype, "grad_bias");
    }
  }
}

TEST_P(DepthAggregateTest, WithoutAGeneratorWeightsAreTheBias) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {7, 19, 3, 2, 0});
    of.run_step(serial_executor());
    Exact sums(of.num_weights());
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(of.weights.at(i), of.bias.at(i % of.num_weights()));
      sums.add(i % of.num_weights(), of.grad_weights.at(i));
    }
    expect_close(of.grad_bias, sums, 7.0, of.statistics, dtype, "grad_bias");
  }
}

// A gradient that is absent is zeros as a stream's, and not wanted as a source's.
TEST_P(DepthAggregateTest, AbsentGradients) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const unsigned absent : {1U, 2U, 5U, 13U, 15U, 63U}) {
      for (const std::int64_t num_added : {0, 2, 5}) {
        Case zeros(dtype, {6, 530, 5, absent == 63U ? 6 : 4, 0});
        for (std::size_t source = 0; source < 5; ++source) {
          zeros.grad_sources[source] =
              Numbers::random(dtype, zeros.grad_sources[source].count(), 300 + source, 1.0);
        }
        for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
          if ((absent >> way & 1U) != 0) {
            zeros.grad_out[way].fill(0.0);
          }
        }
        zeros.point();
        Case left_out = zeros;
        for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
          if ((absent >> way & 1U) != 0) {
            left_out.grad_out_at[way] = nullptr;
          }
        }
        const Numbers untouched = left_out.grad_sources[3];
        left_out.grad_source_at[3] = nullptr;
        depth_aggregate_backward(zeros.sum(), zeros.sum_gradients(num_added), serial_executor());
        depth_aggregate_backward(left_out.sum(), left_out.sum_gradients(num_added),
                                 serial_executor());
        EXPECT_TRUE(left_out.grad_sources[3] == untouched);
        for (std::int64_t source = 0; source < 5; ++source) {
          const auto at = static_cast<std::size_t>(source);
          for (std::int64_t i = 0; i < untouched.count() && source != 3; ++i) {
            ASSERT_EQ(zeros.grad_sources[at].at(i), left_out.grad_sources[at].at(i));
          }
        }
        for (std::int64_t i = 0; i < zeros.grad_weights.count(); ++i) {
          ASSERT_EQ(zeros.grad_weights.at(i), left_out.grad_weights.at(i));
        }
        DepthAggregateGradients none = left_out.sum_gradients(num_added);
        none.grad_sources = nullptr;
        Case only_weights = left_out;
        none.grad_weights = only_weights.grad_weights.data();
        depth_aggregate_backward(left_out.sum(), none, serial_executor());
        EXPECT_TRUE(only_weights.grad_weights == left_out.grad_weights);
        DepthAggregateGradients only_sources = left_out.sum_gradients(0);
        only_sources.grad_weights = nullptr;
        depth_aggregate_backward(left_out.sum(), only_sources, serial_executor());
      }
    }
  }
}

// [C, N, J], as a tensor of weights by ways lies.
TEST_P(DepthAggregateTest, WeightsByWay) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {7, 40, 3, 4, 0});
    Case by_way = of;
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      by_way.weights.set(i / 3 % 4 * 21 + i / 12 * 3 + i % 3, of.weights.at(i));
    }
    DepthAggregate sum = by_way.sum();
    sum.token_stride = 3;
    sum.way_stride = 21;
    depth_aggregate(of.sum(), of.out_at.data(), serial_executor());
    depth_aggregate_backward(of.sum(), of.sum_gradients(), serial_executor());
    depth_aggregate(sum, by_way.out_at.data(), serial_executor());
    depth_aggregate_backward(sum, by_way.sum_gradients(), serial_executor());
    EXPECT_TRUE(of.out == by_way.out && of.grad_sources == by_way.grad_sources);
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(by_way.grad_weights.at(i / 3 % 4 * 21 + i / 12 * 3 + i % 3), of.grad_weights.at(i));
    }
  }
}

// Large streams are stored past the caches: the same bits, at any address.
TEST_P(DepthAggregateTest, LargeStreams) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const std::int64_t width = dtype == DType::kFloat32 ? 1024 : 2048;
    const Shape shape = {300, width, 2, 4, 0};
    const std::int64_t bytes = 4 * shape.n * shape.d * bytes_of(dtype);
    ASSERT_TRUE(is_stored_past_caches(bytes) && !is_stored_past_caches(bytes / 2));
    Case of(dtype, shape);
    std::vector<Numbers> streams;
    for (const std::int64_t shift : {std::int64_t{0}, bytes_of(dtype)}) {
      std::vector<std::vector<std::byte>> memory(
          4, std::vector<std::byte>(static_cast<std::size_t>(of.out[0].count() * bytes_of(dtype)) +
                                    128));
      std::vector<void*> out;
      for (std::vector<std::byte>& bytes : memory) {
        const auto misfit =
            static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(bytes.data()) % 64);
        out.push_back(bytes.data() + (64 - misfit) + shift);
      }
      depth_aggregate(of.sum(), out.data(), ThreadPool(2));
      for (std::size_t way = 0; way < 4; ++way) {
        Numbers stream(dtype, of.out[0].count());
        std::memcpy(stream.data(), out[way],
                    static_cast<std::size_t>(stream.count() * bytes_of(dtype)));
        streams.push_back(stream);
      }
    }
    const std::int64_t half = 150 * width * bytes_of(dtype);
    for (const std::int64_t first : {std::int64_t{0}, half}) {  // small enough for plain stores
      DepthAggregate part = of.sum();
      part.num_tokens = 150;
      std::vector<const void*> sources = of.source_at;
      std::vector<void*> out = of.out_at;
      for (const void*& source : sources) {
        source = static_cast<const std::byte*>(source) + first;
      }
      for (void*& stream : out) {
        stream = static_cast<std::byte*>(stream) + first;
      }
      part.sources = sources.data();
      part.weights = static_cast<const float*>(part.weights) + (first == 0 ? 0 : 150 * 8);
      depth_aggregate(part, out.data(), serial_executor());
    }
    for (std::size_t i = 0; i < streams.size(); ++i) {
      EXPECT_TRUE(streams[i] == of.out[i % 4]) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, DepthAggregateTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

}  // namespace
}  // namespace paperlab::kernels::depth_test
