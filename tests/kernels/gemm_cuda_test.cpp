// The CUDA form of gemm without a GPU: the mapping to column-major calls, who does what of an
// epilogue, and the whole product with the library's call executed as it reads.

#include <gtest/gtest.h>

#include <set>

#include "kernels/gemm/cuda_call.h"
#include "paperlab/core/error.h"
#include "tests/kernels/gemm_cuda_cases.h"
#include "tests/support/lt_emulation.h"

namespace paperlab::kernels {
namespace {

using test::GemmCase;
using test::GemmMemory;

// Addresses of a known alignment; nothing is read there.
alignas(256) std::byte addresses[1024];

void expect_exact(GemmMemory& memory, const GemmCase& of, const GemmMemory::Exact& exact) {
  for (std::int64_t i = 0; i < of.m * memory.stride(); ++i) {
    const std::int64_t row = i / memory.stride();
    const std::int64_t column = i % memory.stride();
    const double x = GemmMemory::number(memory.c(), memory.dtype_of_c(), i);
    if (column >= of.n) {
      ASSERT_TRUE(std::isnan(x)) << of << ": written behind row " << row;
      continue;
    }
    const auto at = static_cast<std::size_t>(row * of.n + column);
    ASSERT_TRUE(std::fabs(x - exact.value[at]) <= exact.bound[at])
        << of << ": C[" << row << ", " << column << "] is " << x << ", exact " << exact.value[at]
        << " +- " << exact.bound[at];
  }
}

// All orders of the operands in memory, with and without gaps; the bias not always aligned.
std::vector<GemmCase> cases_of(test::GemmDType type, std::int64_t m, std::int64_t n,
                               std::int64_t k) {
  std::vector<GemmCase> all;
  for (unsigned bits = 0; bits < 8; ++bits) {
    GemmCase of = {type.dtype, type.is_wide, m, n, k};
    of.a_has_contiguous_rows = (bits & 1U) != 0;
    of.b_has_contiguous_rows = (bits & 2U) != 0;
    of.gap = (bits & 4U) != 0 ? 3 : 0;
    of.shift = static_cast<std::int64_t>(bits % 3 == 2 ? 1 : 0);
    for (const GemmCase& next : test::with_epilogues(of)) {
      all.push_back(next);
    }
  }
  return all;
}

TEST(GemmCudaTest, EveryLayoutAndEpilogueIsWithinTheBound) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const std::int64_t m : {1, 2, 7}) {
      for (const std::int64_t n : {1, 3, 8, 17}) {
        for (const std::int64_t k : {0, 1, 5}) {
          for (const GemmCase& of : cases_of(type, m, n, k)) {
            GemmMemory memory(of);
            const auto exact = memory.exact();
            test::emulate_gemm(memory.problem(memory.host()), memory.epilogue(memory.host()),
                               /*is_reversed=*/k == 1, /*may_fuse=*/m != 2);
            expect_exact(memory, of, exact);
          }
        }
      }
    }
  }
}

TEST(GemmCudaTest, TheReferenceIsTheDefinition) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const GemmCase& of : cases_of(type, 3, 5, 4)) {
      GemmMemory memory(of);
      const auto exact = memory.exact();
      gemm_epilogue_reference(memory.problem(memory.host()), memory.epilogue(memory.host()));
      expect_exact(memory, of, exact);
    }
  }
}

TEST(GemmCudaTest, AlignedRowsGiveTheBitsOfOthers) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const GemmCase& of : test::with_epilogues({type.dtype, type.is_wide, 5, 32, 3})) {
      GemmCase other = of;
      other.gap = 1;
      GemmMemory whole(of);
      GemmMemory parts(other);
      test::emulate_gemm(whole.problem(whole.host()), whole.epilogue(whole.host()));
      test::emulate_gemm(parts.problem(parts.host()), parts.epilogue(parts.host()), true);
      const auto size = static_cast<std::size_t>(GemmMemory::element_size(whole.dtype_of_c()));
      for (std::size_t row = 0; row < 5; ++row) {
        const auto* first = whole.c().data() + row * 32 * size;
        EXPECT_TRUE(std::equal(first, first + 32 * size, parts.c().data() + row * 33 * size)) << of;
      }
    }
  }
}

TEST(GemmCudaTest, EveryStepOfAnEpilogueIsDoneOnceByTheCallOrThePass) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const std::int64_t k : {0, 4}) {
      for (const GemmCase& of : cases_of(type, 3, 5, k)) {
        GemmMemory memory(of);
        for (const bool may_fuse : {false, true}) {
          const GemmPlan plan =
              plan_of(memory.problem(memory.host()), memory.epilogue(memory.host()), may_fuse);
          EXPECT_EQ(plan.bias_in_call + plan.bias_after, of.has_bias) << of;
          EXPECT_EQ(plan.gelu_in_call + plan.gelu_after, of.has_gelu) << of;
          EXPECT_EQ(plan.gate_after, of.has_gate) << of;
          EXPECT_EQ(plan.residual_in_call + plan.residual_after, of.has_residual) << of;
          // The order: what the call does comes first.
          EXPECT_FALSE(plan.gelu_in_call && plan.bias_after) << of;
          EXPECT_FALSE(plan.residual_in_call && (plan.gelu_after || plan.gate_after)) << of;
          EXPECT_FALSE(plan.residual_in_call && plan.gelu_in_call) << of;
          EXPECT_FALSE(k > 0 && of.is_in_place && plan.residual_after) << of;
          // The library's GELU is as coarse as 16 bits are; elsewhere it is ours, behind its bias.
          const bool is_short = !type.is_wide && GemmMemory::element_size(type.dtype) == 2;
          EXPECT_EQ(plan.gelu_in_call, of.has_gelu && may_fuse && k > 0 && is_short &&
                                           (!of.has_bias || plan.bias_in_call))
              << of;
          const bool has_epilogue = plan.bias_in_call || plan.gelu_in_call;
          EXPECT_FALSE(has_epilogue &&
                       (!may_fuse || k == 0 || type.is_wide || type.dtype == DType::kFloat64))
              << of;
        }
      }
    }
  }
}

TEST(GemmCudaTest, LinesOfOneElementOrOneLineHaveLegalStrides) {
  const float number = 1.0F;
  float result = 0.0F;
  for (const std::int64_t m : {1, 2}) {
    for (const std::int64_t k : {1, 2}) {
      for (const std::int64_t row_stride : {0, 1, 2, 100}) {
        for (const std::int64_t k_stride : {0, 1, 2, 100}) {
          Gemm problem;
          problem.m = m;
          problem.n = 1;
          problem.k = k;
          problem.a = {&number, row_stride, k_stride};
          problem.b = {&number, 1, 1};
          problem.c = &result;
          problem.c_stride = 1;
          const bool is_legal =
              has_contiguous_terms(problem.a, m, k) || has_contiguous_rows(problem.a, m, k);
          if (!is_legal) {
            EXPECT_THROW(check_gemm_cuda(problem, {}), ValueError);
            continue;
          }
          const LtCall call = call_of(problem, {}, plan_of(problem, {}));
          for (const ColumnMajor& matrix : {call.a, call.b, call.c, call.d}) {
            EXPECT_GE(matrix.ld, matrix.rows);
          }
          // Element (row, i) of A is where the problem says.
          for (std::int64_t row = 0; row < m; ++row) {
            for (std::int64_t i = 0; i < k; ++i) {
              const std::int64_t at =
                  call.is_b_transposed ? row + i * call.b.ld : i + row * call.b.ld;
              EXPECT_EQ(at, row * row_stride + i * k_stride);
            }
          }
        }
      }
    }
  }
}

TEST(GemmCudaTest, TheKeyTellsCallsApartAndNotAddresses) {
  GemmMemory memory({DType::kBFloat16, false, 7, 16, 9});
  const auto call_for = [&](auto change) {
    Gemm problem = memory.problem(memory.host());
    problem.a.data = addresses + 256;
    problem.b.data = addresses + 512;
    problem.bias = nullptr;
    problem.c = addresses + 768;
    GemmEpilogue epilogue;
    change(problem, epilogue);
    return call_of(problem, epilogue, plan_of(problem, epilogue));
  };
  std::set<LtKey> keys;
  const auto add = [&](auto change) { return keys.insert(key_of(call_for(change), 0, 1)).second; };
  EXPECT_TRUE(add([](Gemm&, GemmEpilogue&) {}));
  EXPECT_FALSE(add([](Gemm& p, GemmEpilogue&) { p.a.data = addresses + 256 + 16; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.a.data = addresses + 256 + 2; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.m = 6; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.n = 15; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.k = 8; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.c_stride = 20; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.a.row_stride = 20; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.b = {p.b.data, 1, 16}; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.dtype = DType::kFloat16; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue&) { p.bias = p.c; }));
  EXPECT_TRUE(add([](Gemm&, GemmEpilogue& e) { e.activation = Activation::kGeluTanh; }));
  EXPECT_TRUE(add([](Gemm&, GemmEpilogue& e) { e.is_wide = true; }));
  EXPECT_TRUE(add([](Gemm& p, GemmEpilogue& e) {
    e.residual = p.c;
    e.residual_stride = p.c_stride;
  }));
  EXPECT_TRUE(keys.insert(key_of(call_for([](Gemm&, GemmEpilogue&) {}), 1, 1)).second);
  EXPECT_TRUE(keys.insert(key_of(call_for([](Gemm&, GemmEpilogue&) {}), 0, 2)).second);
}

TEST(GemmCudaTest, AlignmentIsThatOfTheAddressUpToSixteenBytes) {
  for (std::uintptr_t address = 1; address < 200; ++address) {
    const void* data = addresses + address;
    std::int64_t expected = 1;
    while (expected < 16 && address % static_cast<std::uintptr_t>(2 * expected) == 0) {
      expected *= 2;
    }
    EXPECT_EQ(alignment_of(data), expected);
    EXPECT_EQ(is_aligned(data, 16), expected == 16);
  }
}

TEST(GemmCudaTest, TheWorkspaceIsBoundedAndNeverShrinksWithTheProduct) {
  std::int64_t last = 0;
  for (std::int64_t m = 0; m < std::int64_t{1} << 40; m = 2 * m + 1) {
    const std::int64_t bytes = lt_workspace(m, 100);
    EXPECT_GE(bytes, last);
    EXPECT_GE(bytes, std::int64_t{1} << 20);
    EXPECT_LE(bytes, std::int64_t{1} << 25);
    EXPECT_EQ(bytes % 256, 0);
    last = bytes;
  }
  EXPECT_EQ(lt_workspace(std::int64_t{1} << 40, std::int64_t{1} << 40), std::int64_t{1} << 25);
}

TEST(GemmCudaArgumentsTest, WrongSizesStridesAndEpiloguesAreRefused) {
  GemmCase of = {DType::kFloat32, false, 4, 5, 3};
  of.has_residual = true;
  of.is_in_place = true;
  GemmMemory memory(of);
  const Gemm good = memory.problem(memory.host());
  const GemmEpilogue in_place = memory.epilogue(memory.host());
  EXPECT_NO_THROW(check_gemm_cuda(good, in_place));
  Gemm problem = good;
  problem.k = -1;
  EXPECT_THROW(check_gemm_cuda(problem, {}), ShapeError);
  problem = good;
  problem.a.k_stride = 2;
  EXPECT_THROW(check_gemm_cuda(problem, {}), ValueError);
  problem = good;
  problem.a.row_stride = 0;  // a row that is broadcast
  EXPECT_THROW(check_gemm_cuda(problem, {}), ValueError);
  problem = good;
  problem.c_stride = 4;
  EXPECT_THROW(check_gemm_cuda(problem, {}), ValueError);
  GemmEpilogue epilogue = in_place;
  epilogue.activation = Activation::kGeluTanh;
  EXPECT_THROW(check_gemm_cuda(good, epilogue), ValueError);
  epilogue = in_place;
  epilogue.gate = memory.gate().data();
  epilogue.gate_stride = 5;
  EXPECT_THROW(check_gemm_cuda(good, epilogue), ValueError);
  epilogue = in_place;
  epilogue.residual_stride = 6;
  EXPECT_THROW(check_gemm_cuda(good, epilogue), ValueError);
  epilogue = {};
  epilogue.gate = memory.gate().data();
  epilogue.gate_stride = 4;
  EXPECT_THROW(check_gemm_cuda(good, epilogue), ValueError);
  epilogue = {};
  epilogue.is_wide = true;
  EXPECT_THROW(check_gemm_cuda(good, epilogue), DTypeError);
}

}  // namespace
}  // namespace paperlab::kernels
