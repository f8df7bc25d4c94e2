#include "kernels/linear_cross_entropy/cuda.h"

#include "kernels/common/cuda/check.cuh"
#include "kernels/linear_cross_entropy/cuda_driver.h"

namespace paperlab::kernels {
namespace {

struct NoRegisters {};

__device__ int own_thread() { return static_cast<int>(threadIdx.x); }

__global__ void __launch_bounds__(kLogitsThreads)
    begin_rows_kernel(std::int64_t num_rows, LogitsState* states) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kLogitsThreads + threadIdx.x;
  if (row < num_rows) {
    states[row] = empty_state();
  }
}

// ptxas-budget add_logits_kernel: 64 registers, 4096 bytes
template <class Sum, class T>
__global__ void __launch_bounds__(kLogitsThreads)
    add_logits_kernel(LogitsPass pass, LogitsState* states) {
  __shared__ Sum memory[kLogitsMemory];
  DeviceTeam<LogitsRegisters<Sum>> team{own_thread(), {}};
  add_logits_block<Sum, T>(team, memory, pass, blockIdx.x, states);
}

template <class Sum>
__global__ void __launch_bounds__(kLogitsThreads)
    finish_rows_kernel(RowsPass pass, const LogitsState* states, Sum* loss, Sum* lse,
                       LossPart* parts) {
  __shared__ double memory[kSharedNumbers];
  DeviceTeam<LossRegisters> team{own_thread(), {}};
  finish_rows_block(team, memory, pass, states, blockIdx.x, loss, lse, parts);
}

template <class Sum>
__global__ void __launch_bounds__(kLogitsThreads)
    finish_loss_kernel(RowsPass pass, const LossPart* parts, Sum* loss) {
  __shared__ double memory[kSharedNumbers];
  DeviceTeam<LossRegisters> team{own_thread(), {}};
  finish_loss_block(team, memory, pass, parts, loss);
}

template <class Sum>
__global__ void __launch_bounds__(kLogitsThreads)
    gradient_scale_kernel(RowsPass pass, const Sum* grad_loss, bool scales_result,
                          GradientScale* scale) {
  __shared__ double memory[kSharedNumbers];
  DeviceTeam<LossRegisters> team{own_thread(), {}};
  gradient_scale_block(team, memory, pass, grad_loss, scales_result, scale);
}

// ptxas-budget to_gradients_kernel: 64 registers, 0 bytes
template <class T>
__global__ void __launch_bounds__(kLogitsThreads) to_gradients_kernel(GradientPass pass) {
  DeviceTeam<NoRegisters> team{own_thread(), {}};
  to_gradients_block<T>(team, pass, blockIdx.x);
}

template <class T>
__global__ void __launch_bounds__(kLogitsThreads)
    add_columns_kernel(ColumnsPass pass, NumberOf<T>* sums) {
  __shared__ NumberOf<T> memory[kLogitsThreads];
  DeviceTeam<NoRegisters> team{own_thread(), {}};
  add_columns_block<T>(team, memory, pass, blockIdx.x, sums);
}

template <class T>
__global__ void __launch_bounds__(kLogitsThreads) narrow_kernel(NarrowPass pass) {
  DeviceTeam<NoRegisters> team{own_thread(), {}};
  narrow_block<T>(team, pass, blockIdx.x);
}

// ---------------------------------------------------------------------------------------------

constexpr unsigned grid(std::int64_t blocks) { return static_cast<unsigned>(blocks); }

class DeviceSteps final : public CrossEntropySteps {
 public:
  DeviceSteps(const GemmCuda& products, const Context& context)
      : products_(products), context_(context) {}

  void multiply(const Gemm& problem, const GemmEpilogue& epilogue, void* workspace) override {
    products_.multiply(problem, epilogue, workspace, context_);
  }

  void zero(void* data, std::int64_t bytes) override {
    PAPERLAB_CUDA_CHECK(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), context_.stream));
  }

  void begin_rows(std::int64_t num_rows, LogitsState* states) override {
    begin_rows_kernel<<<grid(logits_blocks(num_rows)), kLogitsThreads, 0, context_.stream>>>(
        num_rows, states);
    PAPERLAB_CUDA_LAUNCHED(begin_rows_kernel);
  }

  void add_logits(DType dtype, const LogitsPass& pass, LogitsState* states) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      add_logits_kernel<NumberOf<T>, T>
          <<<grid(pass.rows.size()), kLogitsThreads, 0, context_.stream>>>(pass, states);
      PAPERLAB_CUDA_LAUNCHED(add_logits_kernel);
    });
  }

  void finish_rows(DType dtype, const RowsPass& pass, const LogitsState* states,
                   const LinearCrossEntropyResult& result, LossPart* parts) override {
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      finish_rows_kernel<<<grid(logits_blocks(pass.num_rows)), kLogitsThreads, 0,
                           context_.stream>>>(pass, states, static_cast<Sum*>(result.loss),
                                              static_cast<Sum*>(result.lse), parts);
      PAPERLAB_CUDA_LAUNCHED(finish_rows_kernel);
    });
  }

  void finish_loss(DType dtype, const RowsPass& pass, const LossPart* parts, void* loss) override {
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      finish_loss_kernel<<<1, kLogitsThreads, 0, context_.stream>>>(pass, parts,
                                                                    static_cast<Sum*>(loss));
      PAPERLAB_CUDA_LAUNCHED(finish_loss_kernel);
    });
  }

  void scale_gradients(DType dtype, const RowsPass& pass, const void* grad_loss,
                       GradientScale* scale) override {
    const bool is_short = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
    with_sum(dtype, [&](auto zero) {
      using Sum = decltype(zero);
      gradient_scale_kernel<<<1, kLogitsThreads, 0, context_.stream>>>(
          pass, static_cast<const Sum*>(grad_loss), is_short, scale);
      PAPERLAB_CUDA_LAUNCHED(gradient_scale_kernel);
    });
  }

  void to_gradients(DType dtype, const GradientPass& pass) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      to_gradients_kernel<T>
          <<<grid(pass.chunk.rows.size()), kLogitsThreads, 0, context_.stream>>>(pass);
      PAPERLAB_CUDA_LAUNCHED(to_gradients_kernel);
    });
  }

  void add_columns(DType dtype, const ColumnsPass& pass, void* sums) override {
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      const std::int64_t blocks = num_ranges(pass.columns, kColumnLanes);
      add_columns_kernel<T><<<grid(blocks), kLogitsThreads, 0, context_.stream>>>(
          pass, static_cast<NumberOf<T>*>(sums));
      PAPERLAB_CUDA_LAUNCHED(add_columns_kernel);
    });
  }

  void narrow(DType dtype, const NarrowPass& pass) override {
    if (pass.count == 0) {
      return;
    }
    with_element(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      if constexpr (sizeof(T) == 2) {
        NarrowPass own = pass;
        own.is_whole = has_whole_packs<T>(pass.count, {pass.from, pass.to}, {});
        const std::int64_t blocks = logits_blocks(num_packs<T>(pass.count));
        narrow_kernel<T><<<grid(blocks), kLogitsThreads, 0, context_.stream>>>(own);
        PAPERLAB_CUDA_LAUNCHED(narrow_kernel);
      }
    });
  }

 private:
  // Calls body(a number of the type of sums).
  template <class Body>
  static void with_sum(DType dtype, Body body) {
    if (dtype == DType::kFloat64) {
      body(double{});
    } else {
      body(float{});
    }
  }

  const GemmCuda& products_;
  const Context& context_;
};

}  // namespace

void linear_cross_entropy_cuda(const LinearCrossEntropy& problem,
                               const LinearCrossEntropyResult& result, const GemmCuda& products,
                               void* workspace, const Context& context) {
  check_linear_cross_entropy_cuda(problem);
  const ChunkShape shape = cuda_chunk_shape(problem.num_rows, problem.width, problem.vocab_size);
  DeviceSteps steps(products, context);
  run_forward(problem, result, shape, forward_memory(problem, shape, products), workspace, steps);
}

void linear_cross_entropy_backward_cuda(const LinearCrossEntropy& problem,
                                        const LinearCrossEntropyGradients& gradients,
                                        const GemmCuda& products, void* workspace,
                                        const Context& context) {
  check_linear_cross_entropy_cuda(problem);
  const ChunkShape shape = cuda_chunk_shape(problem.num_rows, problem.width, problem.vocab_size);
  DeviceSteps steps(products, context);
  run_backward(problem, gradients, shape, backward_memory(problem, gradients, shape, products),
               workspace, steps);
}

}  // namespace paperlab::kernels
