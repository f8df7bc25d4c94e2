#pragma once
// What follows a product where the library has no epilogue for it: bias, GELU, gate and residual in
// one pass over C. A thread does one pack of 16 bytes; host-device, see common/cuda/team.h.

#include "kernels/common/cuda/elements.h"
#include "kernels/gemm/cuda_call.h"

namespace paperlab::kernels {

constexpr int kFinishThreads = 256;

// C [M, N]; strides in elements, all but the bias of the dtype of C.
struct FinishPass {
  std::int64_t m;
  std::int64_t n;
  void* c;
  std::int64_t c_stride;
  bool has_product;  // else C counts as 0 and is not read
  const void* bias;  // [N] of the operands' dtype; absent: none, like gate and residual
  bool has_gelu;
  const void* gate;
  std::int64_t gate_stride;
  const void* residual;
  std::int64_t residual_stride;
  bool is_whole;  // rows are aligned packs (has_whole_packs)
};

// What a plan leaves to the pass. is_whole is not set. Host.
inline FinishPass finish_pass(const Gemm& problem, const GemmEpilogue& epilogue,
                              const GemmPlan& plan) {
  return {problem.m,
          problem.n,
          problem.c,
          problem.c_stride,
          problem.k > 0,
          plan.bias_after ? problem.bias : nullptr,
          plan.gelu_after,
          plan.gate_after ? epilogue.gate : nullptr,
          plan.gate_after ? epilogue.gate_stride : 0,
          plan.residual_after ? epilogue.residual : nullptr,
          plan.residual_after ? epilogue.residual_stride : 0,
          false};
}

template <class T>
bool has_whole_packs(const FinishPass& pass) {
  return has_whole_packs<T>(pass.n, {pass.c, pass.gate, pass.residual},
                            {pass.c_stride, pass.gate_stride, pass.residual_stride});
}

// Calls body(ElementType of C, of the bias). Host.
template <class F>
void with_finish_types(DType dtype, bool is_wide, F body) {
  with_element(dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    if (!is_wide) {
      body(ElementType<T>{}, ElementType<T>{});
    } else if constexpr (sizeof(T) == 2) {
      body(ElementType<float>{}, ElementType<T>{});
    }
  });
}

// Blocks that cover C, as wide elements as those of T.
template <class T>
PAPERLAB_HD constexpr std::int64_t finish_blocks(std::int64_t m, std::int64_t n) {
  return (m * num_packs<T>(n) + kFinishThreads - 1) / kFinishThreads;
}

template <class Number>
PAPERLAB_HD Number tanh_gelu(Number x) {
  constexpr auto kScale = static_cast<Number>(0.79788456080286535588);  // sqrt(2 / pi)
  const Number inner = kScale * (x + static_cast<Number>(0.044715) * x * x * x);
  return static_cast<Number>(0.5) * x * (Number{1} + std::tanh(inner));
}

// The pack of row `row` from column `at` on. T: of C, gate and residual; B: of the bias.
template <class T, class B>
PAPERLAB_HD void finish_pack(const FinishPass& pass, std::int64_t row, std::int64_t at) {
  using Number = NumberOf<T>;
  constexpr int kSize = kPackSize<T>;
  const auto load = [&](const void* from, std::int64_t stride, Number(&to)[kSize]) {
    const T* of_row = static_cast<const T*>(from) + row * stride;
    unpack<T>(load_of_row(of_row, at, pass.n, pass.is_whole), to);
  };
  Number x[kSize] = {};
  if (pass.has_product) {
    load(pass.c, pass.c_stride, x);
  }
  const B* bias = static_cast<const B*>(pass.bias);
  PAPERLAB_UNROLL
  for (int i = 0; i < kSize; ++i) {
    if (bias != nullptr && at + i < pass.n) {
      x[i] += static_cast<Number>(to_number(bias[at + i]));
    }
    x[i] = pass.has_gelu ? tanh_gelu(x[i]) : x[i];
  }
  Number other[kSize];
  if (pass.gate != nullptr) {
    load(pass.gate, pass.gate_stride, other);
    PAPERLAB_UNROLL
    for (int i = 0; i < kSize; ++i) {
      x[i] *= other[i];
    }
  }
  if (pass.residual != nullptr) {
    load(pass.residual, pass.residual_stride, other);
    PAPERLAB_UNROLL
    for (int i = 0; i < kSize; ++i) {
      x[i] += other[i];
    }
  }
  T* of_row = static_cast<T*>(pass.c) + row * pass.c_stride;
  store_of_row(of_row, at, pass.n, pass.is_whole, to_pack<T>(x));
}

template <class T, class B, Team TeamType>
PAPERLAB_HD void finish_block(TeamType& team, const FinishPass& pass, std::int64_t block) {
  const std::int64_t packs = num_packs<T>(pass.n);
  team.each([&](int thread, auto&) {
    const std::int64_t item = block * kFinishThreads + thread;
    if (item < pass.m * packs) {
      finish_pack<T, B>(pass, item / packs, item % packs * kPackSize<T>);
    }
  });
}

}  // namespace paperlab::kernels
