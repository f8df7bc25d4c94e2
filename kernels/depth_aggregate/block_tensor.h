#pragma once
// A step of the tensor cores on one warp: sums [16, 8] += left [16, 8] right [8, 8] in tf32, with
// numbers spread over the lanes as mma.m16n8k8 has them. The host's form does the same for all
// warps of a team, in float32. Source: PTX ISA, "Matrix Fragments for mma.m16n8k8", type .tf32.

#include <vector>

#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/team.h"

namespace paperlab::kernels::depth {

constexpr int kTensorTerms = 8;

// Element i of a lane's 4 of the left matrix, 2 of the right one, 4 sums.
PAPERLAB_HD constexpr int tensor_left_row(int lane, int i) { return lane / 4 + i % 2 * 8; }
PAPERLAB_HD constexpr int tensor_left_term(int lane, int i) { return lane % 4 + i / 2 * 4; }
PAPERLAB_HD constexpr int tensor_right_column(int lane) { return lane / 4; }
PAPERLAB_HD constexpr int tensor_right_term(int lane, int i) { return lane % 4 + i * 4; }
PAPERLAB_HD constexpr int tensor_sum_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
PAPERLAB_HD constexpr int tensor_sum_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// To the nearest number with 10 bits after the point, ties away from zero.
PAPERLAB_HD inline float to_tf32(float x) {
#ifdef __CUDA_ARCH__
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits_as<float>(bits & 0xFFFFE000U);
#else
  const auto bits = bits_as<std::uint32_t>(x);
  return std::isnan(x) ? x : bits_as<float>((bits + 0x1000U) & 0xFFFFE000U);
#endif
}

// Numbers as sums of two that tf32 has. Where they have 11 bits or fewer, the first is the number.
template <int kCount>
struct SplitNumbers {
  float high[kCount];
  float low[kCount];
};

template <int kCount>
PAPERLAB_HD void split(SplitNumbers<kCount>& numbers) {
  PAPERLAB_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const float x = numbers.high[i];
    numbers.high[i] = to_tf32(x);
    numbers.low[i] = to_tf32(x - numbers.high[i]);
  }
}

struct TensorStep {
  const float* left;   // [4]
  const float* right;  // [2]
  float* sums;         // [4]
};

// Until all lanes of a warp are here, as the steps below need them: behind branches that threads
// take by their own values nothing else promises that.
template <class R>
PAPERLAB_HD void converge([[maybe_unused]] const DeviceTeam<R>& team) {
#ifdef __CUDA_ARCH__
  __syncwarp();
#endif
}
template <class R>
void converge([[maybe_unused]] const HostTeam<R>& team) {}

// get(registers) is the step of a lane. Not to be moved into a branch (volatile): all lanes of a
// warp execute it.
template <class R, class Get>
PAPERLAB_HD void multiply_add([[maybe_unused]] DeviceTeam<R>& team, [[maybe_unused]] Get get) {
#ifdef __CUDA_ARCH__
  const TensorStep step = get(team.registers);
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(step.sums[0]), "+f"(step.sums[1]), "+f"(step.sums[2]), "+f"(step.sums[3])
      : "r"(__float_as_uint(step.left[0])), "r"(__float_as_uint(step.left[1])),
        "r"(__float_as_uint(step.left[2])), "r"(__float_as_uint(step.left[3])),
        "r"(__float_as_uint(step.right[0])), "r"(__float_as_uint(step.right[1])));
#endif
}

template <class R, class Get>
void multiply_add(HostTeam<R>& team, Get get) {
  for (std::size_t first = 0; first < team.registers.size(); first += kWarp) {
    float left[16][kTensorTerms];
    float right[kTensorTerms][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const TensorStep step = get(team.registers[first + static_cast<std::size_t>(lane)]);
      for (int i = 0; i < 4; ++i) {
        left[tensor_left_row(lane, i)][tensor_left_term(lane, i)] = step.left[i];
      }
      for (int i = 0; i < 2; ++i) {
        right[tensor_right_term(lane, i)][tensor_right_column(lane)] = step.right[i];
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const TensorStep step = get(team.registers[first + static_cast<std::size_t>(lane)]);
      for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < kTensorTerms; ++k) {
          step.sums[i] += left[tensor_sum_row(lane, i)][k] * right[k][tensor_sum_column(lane, i)];
        }
      }
    }
  }
}

}  // namespace paperlab::kernels::depth
