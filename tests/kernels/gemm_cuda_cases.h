#pragma once
// Products with epilogues for the CUDA form of gemm: operands with random numbers and gaps between
// lines, results filled with NaN, and how far a result may be from the definition.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/gemm/cuda.h"
#include "paperlab/core/rng.h"

namespace paperlab::test {

using kernels::DType;

using Bytes = std::vector<std::byte>;

struct GemmCase {
  DType dtype = DType::kFloat32;
  bool is_wide = false;
  std::int64_t m = 1;
  std::int64_t n = 1;
  std::int64_t k = 1;
  bool a_has_contiguous_rows = false;  // else its terms are
  bool b_has_contiguous_rows = false;
  std::int64_t gap = 0;    // between lines
  std::int64_t shift = 0;  // of the bias, in elements: not aligned
  bool has_bias = false;
  bool has_gelu = false;
  bool has_gate = false;
  bool has_residual = false;
  bool is_in_place = false;  // the residual is C

  friend std::ostream& operator<<(std::ostream& out, const GemmCase& of) {
    return out << "dtype " << static_cast<int>(of.dtype) << (of.is_wide ? " wide" : "") << " M "
               << of.m << " N " << of.n << " K " << of.k << " order " << of.a_has_contiguous_rows
               << of.b_has_contiguous_rows << " gap " << of.gap << " shift " << of.shift
               << " epilogue " << of.has_bias << of.has_gelu << of.has_gate << of.has_residual
               << of.is_in_place;
  }
};

// Every epilogue: bias, GELU, gate, residual and residual in place where it may be.
inline std::vector<GemmCase> with_epilogues(const GemmCase& of) {
  std::vector<GemmCase> all;
  for (unsigned bits = 0; bits < 16; ++bits) {
    GemmCase next = of;
    next.has_bias = (bits & 1U) != 0;
    next.has_gelu = (bits & 2U) != 0;
    next.has_gate = (bits & 4U) != 0;
    next.has_residual = (bits & 8U) != 0;
    all.push_back(next);
    if (next.has_residual && !next.has_gelu && !next.has_gate) {
      next.is_in_place = true;
      all.push_back(next);
    }
  }
  return all;
}

// The memory of a case; all of it NaN where no number is meant.
class GemmMemory {
 public:
  explicit GemmMemory(const GemmCase& of)
      : case_(of),
        dtype_of_c_(of.is_wide ? DType::kFloat32 : of.dtype),
        a_(operand(of.m, of.k, of.a_has_contiguous_rows, 1)),
        b_(operand(of.n, of.k, of.b_has_contiguous_rows, 2)),
        bias_(numbers(1, of.n + of.shift, of.n + of.shift, of.dtype, 3)),
        gate_(numbers(of.m, of.n, stride(), dtype_of_c_, 4)),
        residual_(numbers(of.m, of.n, stride(), dtype_of_c_, 5)),
        c_(of.is_in_place ? residual_ : nans(of.m * stride(), dtype_of_c_)) {}

  // The problem and its epilogue with pointers of these copies of the memory: on the host, or
  // where someone has copied it.
  struct Pointers {
    void* a;
    void* b;
    void* bias;
    void* gate;
    void* residual;
    void* c;
  };
  Pointers host() {
    return {a_.data(), b_.data(), bias_.data(), gate_.data(), residual_.data(), c_.data()};
  }
  kernels::Gemm problem(const Pointers& at) const {
    const std::int64_t shift = case_.shift * element_size(case_.dtype);
    return {case_.dtype,
            case_.m,
            case_.n,
            case_.k,
            view(at.a, case_.m, case_.a_has_contiguous_rows),
            view(at.b, case_.n, case_.b_has_contiguous_rows),
            case_.has_bias ? static_cast<std::byte*>(at.bias) + shift : nullptr,
            at.c,
            stride()};
  }
  kernels::GemmEpilogue epilogue(const Pointers& at) const {
    kernels::GemmEpilogue of;
    of.activation = case_.has_gelu ? kernels::Activation::kGeluTanh : kernels::Activation::kNone;
    of.is_wide = case_.is_wide;
    if (case_.has_gate) {
      of.gate = at.gate;
      of.gate_stride = stride();
    }
    if (case_.has_residual) {
      of.residual = case_.is_in_place ? at.c : at.residual;
      of.residual_stride = stride();
    }
    return of;
  }

  DType dtype_of_c() const { return dtype_of_c_; }
  std::int64_t stride() const { return case_.n + case_.gap; }
  Bytes& a() { return a_; }
  Bytes& b() { return b_; }
  Bytes& bias() { return bias_; }
  Bytes& gate() { return gate_; }
  Bytes& residual() { return residual_; }
  Bytes& c() { return c_; }

  // The definition's results in float64, and how far from them others may be. With u the roundoff
  // of the accumulator and v that of C: a sum of K products and a bias is off by u (K + 6) times
  // the sum of sizes, and rounded to C up to three times before the gate; GELU's slope is below
  // 1.13 and its value off by some u; then each step rounds to C once more.
  struct Exact {
    std::vector<double> value;
    std::vector<double> bound;
  };
  Exact exact() const {
    const double u = case_.dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    const double v = dtype_of_c_ == DType::kBFloat16  ? 0x1p-8
                     : dtype_of_c_ == DType::kFloat16 ? 0x1p-11
                                                      : u;
    Exact all;
    for (std::int64_t m = 0; m < case_.m; ++m) {
      for (std::int64_t n = 0; n < case_.n; ++n) {
        double x = case_.has_bias ? number(bias_, case_.dtype, n + case_.shift) : 0.0;
        double size = std::fabs(x);
        for (std::int64_t k = 0; k < case_.k; ++k) {
          const double term =
              number(a_, case_.dtype, at(m, k, case_.m, case_.a_has_contiguous_rows)) *
              number(b_, case_.dtype, at(n, k, case_.n, case_.b_has_contiguous_rows));
          x += term;
          size += std::fabs(term);
        }
        const std::int64_t of_c = m * stride() + n;
        const double gate = case_.has_gate ? number(gate_, dtype_of_c_, of_c) : 1.0;
        const double residual = case_.has_residual ? number(residual_, dtype_of_c_, of_c) : 0.0;
        const double y =
            case_.has_gelu
                ? x / 2.0 * (1.0 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)))
                : x;
        const double of_y = 1.13 * (u * static_cast<double>(case_.k + 6) * size + 3.0 * v * size) +
                            16.0 * u * std::fabs(x);
        all.value.push_back(gate * y + residual);
        all.bound.push_back(
            1.1 * (std::fabs(gate) * of_y + 4.0 * v * (std::fabs(gate * y) + std::fabs(residual))) +
            (dtype_of_c_ == DType::kFloat16 ? 0x1p-23 : 1e-37));
      }
    }
    return all;
  }

  static double number(const Bytes& of, DType dtype, std::int64_t at) {
    return kernels::load_number(of.data(), dtype, at);
  }
  static std::int64_t element_size(DType dtype) {
    return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  }

 private:
  static Bytes nans(std::int64_t count, DType dtype) {  // 0xFF... is NaN in every dtype
    return Bytes(static_cast<std::size_t>(count * element_size(dtype)), std::byte{0xFF});
  }
  // Random numbers [rows, columns] with 7 bits: exact in every dtype.
  static Bytes numbers(std::int64_t rows, std::int64_t columns, std::int64_t row_stride,
                       DType dtype, std::uint64_t stream) {
    Bytes bytes = nans(rows * row_stride, dtype);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      const double x = philox_normal(23, stream, static_cast<std::uint64_t>(i));
      kernels::store_number(bytes.data(), dtype, i / columns * row_stride + i % columns,
                            std::nearbyint(x * 16.0) / 16.0);
    }
    return bytes;
  }
  Bytes operand(std::int64_t rows, std::int64_t k, bool has_contiguous_rows,
                std::uint64_t stream) const {
    return has_contiguous_rows ? numbers(k, rows, rows + case_.gap, case_.dtype, stream)
                               : numbers(rows, k, k + case_.gap, case_.dtype, stream);
  }
  kernels::GemmOperand view(const void* data, std::int64_t rows, bool has_contiguous_rows) const {
    return has_contiguous_rows ? kernels::GemmOperand{data, 1, rows + case_.gap}
                               : kernels::GemmOperand{data, case_.k + case_.gap, 1};
  }
  std::int64_t at(std::int64_t row, std::int64_t k, std::int64_t rows,
                  bool has_contiguous_rows) const {
    return has_contiguous_rows ? row + k * (rows + case_.gap) : row * (case_.k + case_.gap) + k;
  }

  GemmCase case_;
  DType dtype_of_c_;
  Bytes a_;
  Bytes b_;
  Bytes bias_;
  Bytes gate_;
  Bytes residual_;
  Bytes c_;
};

struct GemmDType {
  DType dtype;
  bool is_wide;
};
inline constexpr GemmDType kGemmDTypes[] = {{DType::kFloat32, false},  {DType::kFloat64, false},
                                            {DType::kBFloat16, false}, {DType::kFloat16, false},
                                            {DType::kBFloat16, true},  {DType::kFloat16, true}};

}  // namespace paperlab::test
