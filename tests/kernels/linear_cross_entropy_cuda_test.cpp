// The CUDA form of linear_cross_entropy without a GPU: the driver of the GPU, with every kernel's
// block algorithm run on the CPU and products executed as cuBLASLt is asked for them.

#include "kernels/linear_cross_entropy/cuda.h"

#include <memory>

#include "kernels/linear_cross_entropy/cuda_driver.h"
#include "paperlab/core/error.h"
#include "tests/kernels/linear_cross_entropy_cases.h"
#include "tests/support/lt_emulation.h"

namespace paperlab::kernels::cross_entropy_test {
namespace {

// Every kernel block by block, thread by thread.
class HostSteps final : public CrossEntropySteps {
 public:
  explicit HostSteps(bool is_reversed) : is_reversed_(is_reversed) {}

  void multiply(const Gemm& problem, const GemmEpilogue& epilogue, void*) override {
    test::emulate_gemm(problem, epilogue, is_reversed_);
  }
  void zero(void* data, std::int64_t bytes) override {
    std::fill_n(static_cast<std::byte*>(data), bytes, std::byte{0});
  }
  void begin_rows(std::int64_t num_rows, LogitsState* states) override {
    std::fill_n(states, num_rows, empty_state());
  }
  void add_logits(DType dtype, const LogitsPass& pass, LogitsState* states) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      using Sum = NumberOf<T>;
      for_blocks<LogitsRegisters<Sum>>(pass.rows.size(), [&](auto& team, std::int64_t row) {
        std::vector<Sum> memory = nan_numbers<Sum>(kLogitsMemory);
        add_logits_block<Sum, T>(team, memory.data(), pass, row, states);
      });
    });
  }
  void finish_rows(DType dtype, const RowsPass& pass, const LogitsState* states,
                   const LinearCrossEntropyResult& result, LossPart* parts) override {
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      for_blocks<LossRegisters>(logits_blocks(pass.num_rows), [&](auto& team, std::int64_t block) {
        std::vector<double> memory = nan_numbers<double>(kSharedNumbers);
        finish_rows_block(team, memory.data(), pass, states, block, static_cast<Sum*>(result.loss),
                          static_cast<Sum*>(result.lse), parts);
      });
    });
  }
  void finish_loss(DType dtype, const RowsPass& pass, const LossPart* parts, void* loss) override {
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      for_blocks<LossRegisters>(1, [&](auto& team, std::int64_t) {
        std::vector<double> memory = nan_numbers<double>(kSharedNumbers);
        finish_loss_block(team, memory.data(), pass, parts, static_cast<Sum*>(loss));
      });
    });
  }
  void scale_gradients(DType dtype, const RowsPass& pass, const void* grad_loss,
                       GradientScale* scale) override {
    const bool is_short = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      for_blocks<LossRegisters>(1, [&](auto& team, std::int64_t) {
        std::vector<double> memory = nan_numbers<double>(kSharedNumbers);
        gradient_scale_block(team, memory.data(), pass, static_cast<const Sum*>(grad_loss),
                             is_short, scale);
      });
    });
  }
  void to_gradients(DType dtype, const GradientPass& pass) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      for_blocks<NoRegisters>(pass.chunk.rows.size(), [&](auto& team, std::int64_t row) {
        to_gradients_block<T>(team, pass, row);
      });
    });
  }
  void add_columns(DType dtype, const ColumnsPass& pass, void* sums) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      for_blocks<NoRegisters>(
          num_ranges(pass.columns, kColumnLanes), [&](auto& team, std::int64_t block) {
            std::vector<NumberOf<T>> memory = nan_numbers<NumberOf<T>>(kLogitsThreads);
            add_columns_block<T>(team, memory.data(), pass, block, static_cast<NumberOf<T>*>(sums));
          });
    });
  }
  void narrow(DType dtype, const NarrowPass& pass) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      if constexpr (sizeof(T) == 2) {
        NarrowPass own = pass;
        own.is_whole = has_whole_packs<T>(pass.count, {pass.from, pass.to}, {});
        for_blocks<NoRegisters>(
            logits_blocks(num_packs<T>(pass.count)),
            [&](auto& team, std::int64_t block) { narrow_block<T>(team, own, block); });
      }
    });
  }

 private:
  struct NoRegisters {};

  template <class Registers, class Body>
  void for_blocks(std::int64_t count, Body body) const {
    HostTeam<Registers> team(kLogitsThreads, is_reversed_);
    for (std::int64_t block = 0; block < count; ++block) {
      body(team, is_reversed_ ? count - 1 - block : block);
    }
  }
  template <class Body>
  static void with_sum(DType dtype, Body body) {
    if (dtype == DType::kFloat64) {
      body(double{});
    } else {
      body(float{});
    }
  }
  template <class Number>
  static std::vector<Number> nan_numbers(int count) {
    return std::vector<Number>(static_cast<std::size_t>(count), static_cast<Number>(NAN));
  }

  bool is_reversed_;
};

// Workspace full of NaN.
struct Workspace {
  explicit Workspace(std::int64_t bytes)
      : memory(static_cast<std::size_t>(bytes + 16), std::byte{0xFF}) {}
  void* data() { return memory.data(); }
  Bytes memory;
};

void run(Case& of, const ChunkShape& shape, bool is_reversed = false) {
  const GemmCuda products = test::emulated_gemm();
  HostSteps steps(is_reversed);
  const CrossEntropyMemory forward = forward_memory(of.problem(), shape, products);
  run_forward(of.problem(), of.result(), shape, forward, Workspace(forward.total).data(), steps);
  const CrossEntropyMemory backward =
      backward_memory(of.problem(), of.gradients(), shape, products);
  run_backward(of.problem(), of.gradients(), shape, backward, Workspace(backward.total).data(),
               steps);
}

ChunkShape whole(Sizes sizes) { return {std::max(sizes.n, std::int64_t{1}), sizes.v}; }

TEST(LinearCrossEntropyCudaTest, EveryShapeIsWithinTheBound) {
  expect_close_of_all(cuda_sizes(), [](Case& of, int number) {
    run(of, whole(of.sizes), /*is_reversed=*/number % 2 == 1);
  });
}

TEST(LinearCrossEntropyCudaTest, SeveralChunksOfRowsAndColumnsAreWithinTheBound) {
  for (const DType dtype : kCudaDTypes) {
    for (const Reduction reduction : kReductions) {
      for (const ChunkShape shape : {ChunkShape{16, 64}, ChunkShape{37, 20}, ChunkShape{5, 137}}) {
        Options options;
        options.reduction = reduction;
        options.z_loss = 0.02;
        Case of(dtype, {37, 6, 137}, options);
        run(of, shape);
        expect_close(of, cuda_rounding(dtype));
      }
    }
  }
}

TEST(LinearCrossEntropyCudaTest, LogitsOfAnySizeDoNotOverflow) {
  for (const DType dtype : kCudaDTypes) {
    Options options;
    options.scale = 16384.0;
    Case of(dtype, {9, 8, 70}, options);
    run(of, {9, 32});
    expect_close(of, cuda_rounding(dtype));
  }
}

TEST(LinearCrossEntropyCudaTest, ColumnsWithoutProbabilityAreLikeAbsentOnes) {
  for (const DType dtype : kCudaDTypes) {
    Case of(dtype, {6, 2, 130}, {});
    for (std::int64_t v = 0; v < 64; ++v) {  // the whole first chunk
      store_number(of.bias.data(), dtype, v, -kInfinity);
    }
    for (std::int64_t& target : of.target) {
      target = target < 0 ? target : 64 + target % 3;
    }
    run(of, {6, 64});
    for (std::int64_t v = 0; v < 130; ++v) {
      const double grad = load_number(of.grad_bias.data(), dtype, v);
      EXPECT_TRUE(v < 64 ? grad == 0.0 : std::isfinite(grad)) << v << ": " << grad;
    }
    EXPECT_TRUE(std::isfinite(of.statistic(of.loss, 0)));
  }
}

TEST(LinearCrossEntropyCudaTest, ANanAndABadTargetStayInTheirRows) {
  for (const DType dtype : kCudaDTypes) {
    expect_wrong_rows_alone(dtype, [](Case& of) { run(of, {16, 64}); });
  }
}

TEST(LinearCrossEntropyCudaTest, WithoutRowsThatCountAMeanIsNanAndGradientsAreZero) {
  for (const DType dtype : kCudaDTypes) {
    for (const Reduction reduction : {Reduction::kMean, Reduction::kSum}) {
      for (const std::int64_t n : {0, 5}) {
        Options options;
        options.reduction = reduction;
        options.z_loss = 0.1;
        Case of(dtype, {n, 3, 20}, options);
        std::fill(of.target.begin(), of.target.end(), options.ignore_index);
        run(of, whole(of.sizes));
        const double loss = of.statistic(of.loss, 0);
        EXPECT_TRUE(reduction == Reduction::kMean ? std::isnan(loss) : loss == 0.0) << loss;
        for (std::int64_t i = 0; i < 60; ++i) {
          EXPECT_EQ(load_number(of.grad_weight.data(), dtype, i), 0.0);
          EXPECT_EQ(load_number(of.grad_bias.data(), dtype, i % 20), 0.0);
          EXPECT_TRUE(i >= n * 3 || load_number(of.grad_x.data(), dtype, i) == 0.0);
        }
      }
    }
  }
}

TEST(LinearCrossEntropyCudaTest, SmallGradientsOfSixteenBitsAreNotLost) {
  Options options;
  options.reduction = Reduction::kSum;
  Case of(DType::kFloat16, {4, 3, 20}, options);
  store_number(of.grad_loss.data(), DType::kFloat32, 0, 0x1p-14);
  run(of, whole(of.sizes));
  expect_close(of, cuda_rounding(DType::kFloat16));
  double size = 0.0;
  for (std::int64_t i = 0; i < 60; ++i) {
    size += std::fabs(load_number(of.grad_weight.data(), DType::kFloat16, i));
  }
  EXPECT_GT(size, 0x1p-14);
}

TEST(LinearCrossEntropyCudaTest, OnlyWantedGradientsAreWritten) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case all(dtype, {20, 5, 40}, {});
    run(all, {16, 24});
    for (int wanted = 0; wanted < 8; ++wanted) {
      Case of(dtype, {20, 5, 40}, {});
      of.lse = all.lse;
      LinearCrossEntropyGradients gradients = of.gradients();
      gradients.grad_x = (wanted & 1) != 0 ? gradients.grad_x : nullptr;
      gradients.grad_weight = (wanted & 2) != 0 ? gradients.grad_weight : nullptr;
      gradients.grad_bias = (wanted & 4) != 0 ? gradients.grad_bias : nullptr;
      HostSteps steps(false);
      const ChunkShape shape = {16, 24};
      const auto memory = backward_memory(of.problem(), gradients, shape, test::emulated_gemm());
      run_backward(of.problem(), gradients, shape, memory, Workspace(memory.total).data(), steps);
      EXPECT_EQ(of.grad_x, (wanted & 1) != 0 ? all.grad_x : nans(100));
      EXPECT_EQ(of.grad_weight, (wanted & 2) != 0 ? all.grad_weight : nans(200));
      EXPECT_EQ(of.grad_bias, (wanted & 4) != 0 ? all.grad_bias : nans(40));
    }
  }
}

TEST(LinearCrossEntropyCudaTest, OrderOfThreadsAndBlocksDoesNotMatter) {
  for (const DType dtype : kCudaDTypes) {
    Case forward(dtype, {70, 3, 300}, {});
    Case reversed = forward;
    run(forward, {48, 128});
    run(reversed, {48, 128}, /*is_reversed=*/true);
    EXPECT_TRUE(forward.has_same_results(reversed));
  }
}

TEST(LinearCrossEntropyCudaTest, TheGpuAgreesWithTheCpu) {
  for (const DType dtype : kDTypes) {
    Case cpu(dtype, {33, 8, 200}, {});
    Case gpu = cpu;
    cpu.run(serial_executor());
    run(gpu, {16, 64});
    expect_close(cpu);
    expect_close(gpu, cuda_rounding(dtype));
  }
}

TEST(LinearCrossEntropyCudaTileTest, ChunksAreBoundedAndMemoryDoesNotOverlap) {
  for (const std::int64_t n : {0, 1, 7, 500, 2048, 8192, 8193, 100000}) {
    for (const std::int64_t d : {0, 1, 576, 8192}) {
      for (const std::int64_t v : {1, 256, 1025, 32000, 49152, 1000003}) {
        const ChunkShape shape = cuda_chunk_shape(n, d, v);
        EXPECT_GE(shape.rows, 1);
        EXPECT_LE(shape.rows, kCudaChunkRows);
        EXPECT_GE(shape.columns, 1);
        EXPECT_LE(shape.columns, v);
        EXPECT_LE(shape.rows * shape.columns, kCudaChunkElements);
        EXPECT_TRUE(shape.columns <= kLeastCudaColumns || shape.columns * d <= kCudaChunkElements);
        EXPECT_GE(num_ranges(v, shape.columns) * shape.columns, v);
        const std::int64_t stride = logits_stride(shape);
        EXPECT_GE(stride, shape.columns + 8);
        EXPECT_EQ(stride % 16, 0);
        LinearCrossEntropy problem;
        problem.dtype = DType::kBFloat16;
        problem.num_rows = n;
        problem.width = d;
        problem.vocab_size = v;
        LinearCrossEntropyGradients gradients;
        int some = 0;
        gradients.grad_x = gradients.grad_weight = gradients.grad_bias = &some;
        const auto memory = backward_memory(problem, gradients, shape, test::emulated_gemm());
        const std::int64_t places[] = {memory.logits,   memory.scale,       memory.gradients,
                                       memory.wide_x,   memory.wide_weight, memory.wide_bias,
                                       memory.products, memory.total};
        const std::int64_t sizes[] = {shape.rows * stride * 4,
                                      16,
                                      shape.rows * stride * 2,
                                      n * d * 4,
                                      shape.columns * d * 4,
                                      v * 4,
                                      1 << 20};
        for (int i = 0; i < 7; ++i) {
          EXPECT_EQ(places[i] % 256, 0);
          EXPECT_GE(places[i + 1], places[i] + sizes[i]);
        }
      }
    }
  }
  EXPECT_EQ(cuda_chunk_shape(8192, 4096, 131072), (ChunkShape{8192, 2048}));
}

TEST(LinearCrossEntropyCudaArgumentsTest, WrongSizesAndStridesAreRefused) {
  Case of(DType::kFloat32, {4, 3, 5}, {});
  LinearCrossEntropy problem = of.problem();
  EXPECT_NO_THROW(check_linear_cross_entropy_cuda(problem));
  problem.vocab_size = 0;
  EXPECT_THROW(check_linear_cross_entropy_cuda(problem), ShapeError);
  problem = of.problem();
  problem.num_rows = -1;
  EXPECT_THROW(check_linear_cross_entropy_cuda(problem), ShapeError);
  problem = of.problem();
  problem.weight.k_stride = 2;
  EXPECT_THROW(check_linear_cross_entropy_cuda(problem), ValueError);
}

}  // namespace
}  // namespace paperlab::kernels::cross_entropy_test
