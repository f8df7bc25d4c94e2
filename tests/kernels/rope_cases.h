#pragma once
// Cases of rope for the tests of all backends: inputs, results that start as NaN, and the textbook
// in complex numbers with the bounds of its comparison.

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/rope/rope.h"
#include "paperlab/core/rng.h"
#include "tests/support/row_tensor.h"

namespace paperlab::kernels::rope_cases {

// 0xFF is NaN in every dtype.
inline std::vector<std::byte> nans(std::int64_t numbers) {
  return std::vector<std::byte>(static_cast<std::size_t>(numbers * 8), std::byte{0xFF});
}

struct Sizes {
  std::int64_t batch;
  std::int64_t length;
  std::int64_t heads;
  std::int64_t width;
  std::int64_t half;
};

// Odd shapes, shapes without elements, and shapes of aligned packs.
inline std::vector<Sizes> odd_sizes() {
  return {
      {1, 1, 9, 64, 32},   {2, 3, 2, 2, 1},  {2, 5, 3, 7, 1},    {3, 2, 1, 33, 16},
      {2, 4, 2, 40, 19},   {1, 7, 3, 96, 8}, {2, 2, 2, 130, 65}, {1, 3, 2, 5, 0},
      {0, 3, 2, 8, 4},     {2, 0, 2, 8, 4},  {2, 3, 0, 8, 4},    {2, 3, 2, 0, 0},
      {2, 40, 5, 128, 64},
  };
}

// x in memory [B, H, T, D + gap], which a projection's split into heads is not; NaN in the gaps.
struct Case {
  Case(DType type, const Sizes& sizes, std::int64_t gap, std::int64_t batches_of_table)
      : dtype(type),
        size(sizes),
        pitch(sizes.width + gap),
        table_batch(batches_of_table),
        x(nans(sizes.batch * sizes.length * sizes.heads * pitch)),
        out(nans(numbers() + 16)),
        cos(nans(table_batch * sizes.length * sizes.half)),
        sin(cos) {
    for (std::int64_t i = 0; i < numbers(); ++i) {
      store_number(x.data(), dtype, i / size.width * pitch + i % size.width,
                   philox_normal(5, 1, static_cast<std::uint64_t>(i)));
    }
    for (std::int64_t i = 0; i < table_batch * size.length * size.half; ++i) {
      const double angle = 3.0 * philox_normal(5, 2, static_cast<std::uint64_t>(i));
      store_number(cos.data(), statistics_dtype(dtype), i, std::cos(angle));
      store_number(sin.data(), statistics_dtype(dtype), i, std::sin(angle));
    }
  }

  std::int64_t numbers() const { return size.batch * size.length * size.heads * size.width; }
  Rope problem(bool inverse) const {
    const std::int64_t of_head = size.length * pitch;
    return {{x.data(),
             dtype,
             {size.batch, size.length, size.heads, size.width},
             {size.heads * of_head, pitch, of_head, 1}},
            size.half,
            table_batch,
            cos.data(),
            sin.data(),
            inverse};
  }
  // The rotation of out, which is contiguous.
  Rope problem_of_out(bool inverse) const {
    Rope of_out = problem(inverse);
    const std::int64_t of_position = size.heads * size.width;
    of_out.x = {out.data(),
                dtype,
                {size.batch, size.length, size.heads, size.width},
                {size.length * of_position, of_position, size.width, 1}};
    return of_out;
  }
  double input(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t i) const {
    return load_number(x.data(), dtype, ((b * size.heads + h) * size.length + t) * pitch + i);
  }
  std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return ((b * size.length + t) * size.heads + h) * size.width;
  }
  double output(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t i) const {
    return load_number(out.data(), dtype, at(b, t, h) + i);
  }
  std::complex<double> turn(std::int64_t b, std::int64_t t, std::int64_t i) const {
    const std::int64_t entry = ((table_batch == 1 ? 0 : b) * size.length + t) * size.half + i;
    return {load_number(cos.data(), statistics_dtype(dtype), entry),
            load_number(sin.data(), statistics_dtype(dtype), entry)};
  }
  // Calls body(b, t, h) for each head.
  template <class F>
  void for_each_head(F body) const {
    for (std::int64_t b = 0; b < size.batch; ++b) {
      for (std::int64_t t = 0; t < size.length; ++t) {
        for (std::int64_t h = 0; h < size.heads; ++h) {
          body(b, t, h);
        }
      }
    }
  }

  DType dtype;
  Sizes size;
  std::int64_t pitch;
  std::int64_t table_batch;
  std::vector<std::byte> x;
  std::vector<std::byte> out;
  std::vector<std::byte> cos;
  std::vector<std::byte> sin;
};

// Two products and a sum are three roundings, together eps (|a| + |b|) but for the roundings of
// roundings; a result of 16 bits has half an ulp more.
inline void expect_close(DType dtype, double got, double exact, double norm) {
  EXPECT_LE(std::fabs(got - exact), 1.01 * test::epsilon(dtype) * norm +
                                        test::half_ulp(dtype) * std::fabs(exact) +
                                        test::half_step(dtype));
}

inline void expect_head(const Case& of, bool inverse, std::int64_t b, std::int64_t t,
                        std::int64_t h) {
  const std::int64_t half = of.size.half;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::complex<double> turn = of.turn(b, t, i);
    const std::complex<double> x(of.input(b, t, h, i), of.input(b, t, h, half + i));
    const std::complex<double> exact = x * (inverse ? std::conj(turn) : turn);
    const double c = std::fabs(turn.real());
    const double s = std::fabs(turn.imag());
    const double low = std::fabs(x.real());
    const double high = std::fabs(x.imag());
    expect_close(of.dtype, of.output(b, t, h, i), exact.real(), low * c + high * s);
    expect_close(of.dtype, of.output(b, t, h, half + i), exact.imag(), high * c + low * s);
  }
  for (std::int64_t i = 2 * half; i < of.size.width; ++i) {
    EXPECT_EQ(of.output(b, t, h, i), of.input(b, t, h, i));
  }
}

inline void expect_right(const Case& of, bool inverse) {
  of.for_each_head(
      [&](std::int64_t b, std::int64_t t, std::int64_t h) { expect_head(of, inverse, b, t, h); });
  for (std::int64_t i = of.numbers(); i < of.numbers() + 16; ++i) {
    EXPECT_TRUE(std::isnan(load_number(of.out.data(), of.dtype, i))) << "beyond the end";
  }
}

// --- the GPU's kernel, on a GPU and block by block on the CPU ------------------------------------

inline constexpr DType kCudaDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                        DType::kFloat64};

// After run(case, inverse): odd shapes, rows side by side and with gaps, a table for all batch rows
// and one for each.
template <class Run>
void expect_right_of_all(Run run) {
  std::vector<Sizes> all = odd_sizes();
  all.push_back({1, 3, 17, 64, 16});     // a part of a head, in packs
  all.push_back({1, 1, 17, 1300, 600});  // more packs than threads, heads in several rounds
  for (const DType dtype : kCudaDTypes) {
    for (const Sizes& size : all) {
      for (const std::int64_t table_batch : {std::int64_t{1}, size.batch}) {
        for (const bool inverse : {false, true}) {
          Case of(dtype, size, inverse ? 0 : 3, table_batch);
          run(of, inverse);
          expect_right(of, inverse);
        }
      }
    }
  }
}

}  // namespace paperlab::kernels::rope_cases
