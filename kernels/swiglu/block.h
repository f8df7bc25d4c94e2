#pragma once
// What one block of GPU threads does (host-device, over a team): one chunk of some rows, all loads
// before the first use. Rows that lie side by side are one long row.

#include <cmath>

#include "kernels/common/cuda/row_packs.h"
#include "kernels/swiglu/swiglu.h"

namespace paperlab::kernels {

constexpr int kSwigluPacks = 4;      // loads of each of two tensors in flight
constexpr int kSwigluGradPacks = 2;  // of each of three

struct SwigluLaunch {
  Swiglu problem;
  RowPlan plan;

  PAPERLAB_HD std::int64_t num_blocks() const {
    return plan.team.num_turns(problem.num_rows) * plan.num_chunks;
  }
  // Where a thread's row of a block lies in a tensor of that stride.
  PAPERLAB_HD RowSpan span(std::int64_t block, int thread, std::int64_t stride) const {
    return row_span(plan.row(block / plan.num_chunks, thread), problem.num_rows, stride,
                    problem.width);
  }
};

// Host. `strides` and `first`: of all tensors of the pass.
template <class T>
SwigluLaunch swiglu_launch(Swiglu problem, int packs, std::initializer_list<const void*> first,
                           std::initializer_list<std::int64_t> strides) {
  bool is_one_row = true;
  for (const std::int64_t stride : strides) {
    is_one_row = is_one_row && (stride == problem.width || problem.num_rows <= 1);
  }
  if (is_one_row && problem.num_rows > 1) {
    problem.width *= problem.num_rows;
    problem.num_rows = 1;
  }
  const bool is_whole = is_one_row ? has_whole_packs<T>(problem.width, first, {})
                                   : has_whole_packs<T>(problem.width, first, strides);
  return {problem, row_plan<T>(problem.width, packs, kRowThreads, is_whole)};
}

template <class T>
SwigluLaunch swiglu_forward_launch(const Swiglu& problem, const MutableRows& y) {
  return swiglu_launch<T>(problem, kSwigluPacks, {problem.gate.data, problem.up.data, y.data},
                          {problem.gate.stride, problem.up.stride, y.stride});
}

template <class T>
SwigluLaunch swiglu_backward_launch(const Swiglu& problem, const Rows& grad_y,
                                    const MutableRows& grad_gate, const MutableRows& grad_up) {
  return swiglu_launch<T>(
      problem, kSwigluGradPacks,
      {problem.gate.data, problem.up.data, grad_y.data, grad_gate.data, grad_up.data},
      {problem.gate.stride, problem.up.stride, grad_y.stride, grad_gate.stride, grad_up.stride});
}

// s(x) = 1 / (1 + exp(-x)) and s(-x), from exp(-|x|), which does not overflow. The float form
// rounds x log2(e), which moves a result by at most 0.75 |x| 2^-23 of its size.
template <class Number>
struct Sigmoids {
  Number of;
  Number of_minus;
};
PAPERLAB_HD inline Sigmoids<float> sigmoids(float x) {
  constexpr float kLog2E = 1.44269504F;
  const float e = std::exp2(-std::fabs(x) * kLog2E);
#ifdef __CUDA_ARCH__
  const float inverse = __fdividef(1.0F, 1.0F + e);  // of 1..2: within two units in the last place
#else
  const float inverse = 1.0F / (1.0F + e);
#endif
  return x < 0.0F ? Sigmoids<float>{e * inverse, inverse} : Sigmoids<float>{inverse, e * inverse};
}
PAPERLAB_HD inline Sigmoids<double> sigmoids(double x) {
  const double e = std::exp(-std::fabs(x));
  const double inverse = 1.0 / (1.0 + e);
  return x < 0.0 ? Sigmoids<double>{e * inverse, inverse} : Sigmoids<double>{inverse, e * inverse};
}

template <class T, class AnyTeam>
PAPERLAB_HD void swiglu_block(AnyTeam& team, const SwigluLaunch& launch, const MutableRows& y,
                              std::int64_t block) {
  const Swiglu& problem = launch.problem;
  const std::int64_t chunk = block % launch.plan.num_chunks;
  team.each_alone([&](int thread, auto&) {
    Pack gate[kSwigluPacks];
    Pack up[kSwigluPacks];
    load_packs<T>(problem.gate.data, launch.span(block, thread, problem.gate.stride), launch.plan,
                  thread, chunk, gate);
    load_packs<T>(problem.up.data, launch.span(block, thread, problem.up.stride), launch.plan,
                  thread, chunk, up);
    PAPERLAB_UNROLL
    for (int k = 0; k < kSwigluPacks; ++k) {
      NumberOf<T> x[kPackSize<T>];
      NumberOf<T> u[kPackSize<T>];
      unpack<T>(gate[k], x);
      unpack<T>(up[k], u);
      PAPERLAB_UNROLL
      for (int i = 0; i < kPackSize<T>; ++i) {
        x[i] = x[i] * sigmoids(x[i]).of * u[i];
      }
      store_pack_of<T>(y.data, launch.span(block, thread, y.stride), launch.plan, thread, chunk, k,
                       to_pack<T>(x));
    }
  });
}

template <class T, class AnyTeam>
PAPERLAB_HD void swiglu_backward_block(AnyTeam& team, const SwigluLaunch& launch,
                                       const Rows& grad_y, const MutableRows& grad_gate,
                                       const MutableRows& grad_up, std::int64_t block) {
  const Swiglu& problem = launch.problem;
  const std::int64_t chunk = block % launch.plan.num_chunks;
  team.each_alone([&](int thread, auto&) {
    Pack gate[kSwigluGradPacks];
    Pack up[kSwigluGradPacks];
    Pack grad[kSwigluGradPacks];
    load_packs<T>(problem.gate.data, launch.span(block, thread, problem.gate.stride), launch.plan,
                  thread, chunk, gate);
    load_packs<T>(problem.up.data, launch.span(block, thread, problem.up.stride), launch.plan,
                  thread, chunk, up);
    load_packs<T>(grad_y.data, launch.span(block, thread, grad_y.stride), launch.plan, thread,
                  chunk, grad);
    PAPERLAB_UNROLL
    for (int k = 0; k < kSwigluGradPacks; ++k) {
      NumberOf<T> x[kPackSize<T>];
      NumberOf<T> u[kPackSize<T>];
      NumberOf<T> g[kPackSize<T>];
      unpack<T>(gate[k], x);
      unpack<T>(up[k], u);
      unpack<T>(grad[k], g);
      PAPERLAB_UNROLL
      for (int i = 0; i < kPackSize<T>; ++i) {
        const auto s = sigmoids(x[i]);
        u[i] = g[i] * u[i] * s.of * fused(x[i], s.of_minus, NumberOf<T>{1});
        g[i] = g[i] * x[i] * s.of;
      }
      store_pack_of<T>(grad_gate.data, launch.span(block, thread, grad_gate.stride), launch.plan,
                       thread, chunk, k, to_pack<T>(u));
      store_pack_of<T>(grad_up.data, launch.span(block, thread, grad_up.stride), launch.plan,
                       thread, chunk, k, to_pack<T>(g));
    }
  });
}

}  // namespace paperlab::kernels
