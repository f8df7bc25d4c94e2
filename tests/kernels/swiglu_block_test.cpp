// The GPU's blocks of swiglu, run on the CPU.

#include "kernels/swiglu/block.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/kernels/swiglu_cases.h"
#include "tests/support/cuda_emulation.h"

namespace paperlab::kernels {
namespace {

using swiglu_cases::Case;
using swiglu_cases::kCudaDTypes;
using swiglu_cases::Matrix;

template <class T>
void emulate_as(Case& of, bool is_reversed) {
  const MutableRows y = of.y.view();
  const SwigluLaunch forward = swiglu_forward_launch<T>(of.problem(), y);
  test::emulate_teams<NoRegisters>(
      forward.num_blocks(), forward.plan.team.threads(), is_reversed,
      [&](auto& team, std::int64_t block) { swiglu_block<T>(team, forward, y, block); });
  const Matrix& grad = of.grad_y;
  const Rows grad_y = grad.view();
  const MutableRows grad_gate = of.grad_gate.view();
  const MutableRows grad_up = of.grad_up.view();
  const SwigluLaunch backward = swiglu_backward_launch<T>(of.problem(), grad_y, grad_gate, grad_up);
  test::emulate_teams<NoRegisters>(backward.num_blocks(), backward.plan.team.threads(), is_reversed,
                                   [&](auto& team, std::int64_t block) {
                                     swiglu_backward_block<T>(team, backward, grad_y, grad_gate,
                                                              grad_up, block);
                                   });
}

void emulate(Case& of, bool is_reversed = false) {
  if (of.gate.num_rows == 0) {  // nothing is launched
    return;
  }
  with_element(of.gate.dtype, [&](auto element) {
    emulate_as<typename decltype(element)::Type>(of, is_reversed);
  });
}

TEST(SwigluBlockTest, BothPassesAreWithinTheBound) {
  swiglu_cases::expect_right_of_all([](Case& of) { emulate(of); });
}

TEST(SwigluBlockTest, LargeGatesNeitherOverflowNorCancel) {
  swiglu_cases::expect_right_of_large_gates([](Case& of) { emulate(of); });
}

TEST(SwigluBlockTest, OrderOfThreadsAndBlocksDoesNotMatter) {
  for (const DType dtype : kCudaDTypes) {
    Case forward(dtype, 3, 3000, 3010);
    Case reversed = forward;
    emulate(forward);
    emulate(reversed, /*is_reversed=*/true);
    EXPECT_TRUE(forward.has_same_results(reversed));
  }
}

TEST(SwigluBlockTest, NanStaysWhereItIs) {
  Case of(DType::kBFloat16, 1, 21, 21);
  of.gate.set(0, 5, std::numeric_limits<double>::quiet_NaN());
  emulate(of);
  for (std::int64_t f = 0; f < 21; ++f) {
    EXPECT_EQ(std::isnan(of.y.get(0, f)), f == 5);
    EXPECT_EQ(std::isnan(of.grad_gate.get(0, f)), f == 5);
  }
}

}  // namespace
}  // namespace paperlab::kernels
