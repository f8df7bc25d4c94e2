#include "kernels/gemm/cuda.h"

#include "kernels/common/cuda/check.cuh"
#include "kernels/gemm/block.h"
#include "kernels/gemm/cuda_call.h"
#include "kernels/gemm/cuda_library.h"

namespace paperlab::kernels {
namespace {

// ptxas-budget finish_kernel: 64 registers, 0 bytes
template <class T, class B>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(FinishPass pass) {
  struct NoRegisters {};
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  finish_block<T, B>(team, pass, blockIdx.x);
}

void finish(const Gemm& problem, const GemmEpilogue& epilogue, const GemmPlan& plan,
            const Context& context) {
  FinishPass pass = finish_pass(problem, epilogue, plan);
  with_finish_types(problem.dtype, epilogue.is_wide, [&](auto of_c, auto of_bias) {
    using T = typename decltype(of_c)::Type;
    using B = typename decltype(of_bias)::Type;
    pass.is_whole = has_whole_packs<T>(pass);
    const auto blocks = static_cast<unsigned>(finish_blocks<T>(pass.m, pass.n));
    finish_kernel<T, B><<<blocks, kFinishThreads, 0, context.stream>>>(pass);
    PAPERLAB_CUDA_LAUNCHED(finish_kernel);
  });
}

}  // namespace

void gemm_cuda(const Gemm& problem, const GemmEpilogue& epilogue, void* workspace,
               const Context& context) {
  check_gemm_cuda(problem, epilogue);
  if (problem.m == 0 || problem.n == 0) {
    return;
  }
  GemmPlan plan = plan_of(problem, epilogue);
  if (problem.k > 0) {
    const std::int64_t bytes = gemm_cuda_workspace(problem);
    LtCall call = call_of(problem, epilogue, plan);
    if ((call.bias != nullptr || call.has_gelu) && !has_lt_algorithm(call, bytes)) {
      plan = plan_of(problem, epilogue, /*may_fuse=*/false);
      call = call_of(problem, epilogue, plan);
    }
    run_lt(call, workspace, bytes, context);
  }
  if (problem.k == 0 || plan.has_pass()) {
    finish(problem, epilogue, plan, context);
  }
}

}  // namespace paperlab::kernels
