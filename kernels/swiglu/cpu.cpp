// Compiled once for each instruction set.
#include "kernels/swiglu/cpu.h"

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// 1 / (1 + exp(-x)) without overflow: exp of numbers <= 0 alone.
inline VecF sigmoid(VecF x) {
  const VecF e = exp(x < zero() ? x : -x);
  return (x < zero() ? e : set1(1.0F)) / (e + 1.0F);
}

template <class T>
const T* row_of(const Rows& rows, std::int64_t row, std::int64_t begin) {
  return static_cast<const T*>(rows.data) + row * rows.stride + begin;
}
template <class T>
T* row_of(const MutableRows& rows, std::int64_t row, std::int64_t begin) {
  return static_cast<T*>(rows.data) + row * rows.stride + begin;
}

template <class T>
void forward_row(const Swiglu& problem, const MutableRows& y, std::int64_t row, std::int64_t begin,
                 std::int64_t end) {
  const T* gate = row_of<T>(problem.gate, row, begin);
  const T* up = row_of<T>(problem.up, row, begin);
  T* out = row_of<T>(y, row, begin);
  for_each_vector(end - begin, [&](std::int64_t f, std::int64_t count) {
    const VecF x = load_row(gate + f, count);
    store_row(out + f, count, x * sigmoid(x) * load_row(up + f, count));
  });
}

template <class T>
void backward_row(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                  const MutableRows& grad_up, std::int64_t row, std::int64_t begin,
                  std::int64_t end) {
  const T* gate = row_of<T>(problem.gate, row, begin);
  const T* up = row_of<T>(problem.up, row, begin);
  const T* grad = row_of<T>(grad_y, row, begin);
  T* to_gate = row_of<T>(grad_gate, row, begin);
  T* to_up = row_of<T>(grad_up, row, begin);
  for_each_vector(end - begin, [&](std::int64_t f, std::int64_t count) {
    const VecF x = load_row(gate + f, count);
    const VecF g = load_row(grad + f, count);
    const VecF s = sigmoid(x);
    // 1 - s as the sigmoid of -x: the difference would cancel.
    store_row(to_gate + f, count,
              g * load_row(up + f, count) * s * fma(x, sigmoid(-x), set1(1.0F)));
    store_row(to_up + f, count, g * x * s);
  });
}

void forward(const Swiglu& problem, const MutableRows& y, std::int64_t row, std::int64_t begin,
             std::int64_t end) {
  if (problem.dtype == DType::kFloat32) {
    forward_row<float>(problem, y, row, begin, end);
  } else {
    forward_row<std::uint16_t>(problem, y, row, begin, end);
  }
}

void backward(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
              const MutableRows& grad_up, std::int64_t row, std::int64_t begin, std::int64_t end) {
  if (problem.dtype == DType::kFloat32) {
    backward_row<float>(problem, grad_y, grad_gate, grad_up, row, begin, end);
  } else {
    backward_row<std::uint16_t>(problem, grad_y, grad_gate, grad_up, row, begin, end);
  }
}

}  // namespace

SwigluCpu swiglu_cpu() { return {forward, backward}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
