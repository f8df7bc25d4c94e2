// Compiled once for each instruction set. A row's elements lie in the lanes; sums of a row are
// taken lane by lane, then across lanes.
#include "kernels/rms_norm/cpu.h"

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

template <class T>
void forward_row(const RmsNormForward& problem, std::int64_t row) {
  const std::int64_t width = problem.width;
  const auto* x = static_cast<const T*>(problem.x) + row * width;
  const auto* weight = static_cast<const T*>(problem.weight);
  VecF squares = zero();
  if (problem.residual != nullptr) {
    const auto* residual = static_cast<const T*>(problem.residual) + row * width;
    auto* sum = static_cast<T*>(problem.sum) + row * width;
    for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
      store_row(sum + d, count, load_row(x + d, count) + load_row(residual + d, count));
    });
    x = sum;  // as it was rounded
  }
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    const VecF s = load_row(x + d, count);
    squares = fma(s, s, squares);
  });
  const float mean = sum_of_lanes(squares) / static_cast<float>(width);
  const float r = 1.0F / __builtin_sqrtf(mean + static_cast<float>(problem.eps));
  static_cast<float*>(problem.inverse_rms)[row] = r;
  auto* y = static_cast<T*>(problem.y) + row * width;
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    store_row(y + d, count, load_row(x + d, count) * r * load_row(weight + d, count));
  });
}

template <class T>
void backward_row(const RmsNormBackward& problem, std::int64_t row, float* grad_weight) {
  const std::int64_t width = problem.width;
  const auto* grad_y = static_cast<const T*>(problem.grad_y) + row * width;
  const auto* s = static_cast<const T*>(problem.s) + row * width;
  const auto* weight = static_cast<const T*>(problem.weight);
  const float r = static_cast<const float*>(problem.inverse_rms)[row];
  VecF sums = zero();
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    const VecF grad = load_row(grad_y + d, count);
    const VecF n = load_row(s + d, count) * r;
    sums = fma(grad * load_row(weight + d, count), n, sums);
    store_row(grad_weight + d, count, fma(grad, n, load_row(grad_weight + d, count)));
  });
  const float mean = sum_of_lanes(sums) / static_cast<float>(width);
  auto* grad_x = static_cast<T*>(problem.grad_x) + row * width;
  const auto* grad_sum =
      problem.grad_sum == nullptr ? nullptr : static_cast<const T*>(problem.grad_sum) + row * width;
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    const VecF grad = load_row(grad_y + d, count) * load_row(weight + d, count);
    VecF out = (grad - load_row(s + d, count) * r * mean) * r;
    if (grad_sum != nullptr) {
      out += load_row(grad_sum + d, count);
    }
    store_row(grad_x + d, count, out);
  });
}

void forward(const RmsNormForward& problem, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    if (problem.dtype == DType::kFloat32) {
      forward_row<float>(problem, row);
    } else {
      forward_row<std::uint16_t>(problem, row);
    }
  }
}

void backward(const RmsNormBackward& problem, std::int64_t begin, std::int64_t end,
              float* grad_weight) {
  for (std::int64_t d = 0; d < problem.width; ++d) {
    grad_weight[d] = 0.0F;
  }
  for (std::int64_t row = begin; row < end; ++row) {
    if (problem.dtype == DType::kFloat32) {
      backward_row<float>(problem, row, grad_weight);
    } else {
      backward_row<std::uint16_t>(problem, row, grad_weight);
    }
  }
}

void add_parts(const RmsNormBackward& problem, const float* parts, std::int64_t num_parts) {
  const std::int64_t width = problem.width;
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    VecF sum = zero();
    for (std::int64_t part = 0; part < num_parts; ++part) {
      sum += load_row(parts + part * width + d, count);
    }
    if (problem.dtype == DType::kFloat32) {
      store_row(static_cast<float*>(problem.grad_weight) + d, count, sum);
    } else {
      store_row(static_cast<std::uint16_t*>(problem.grad_weight) + d, count, sum);
    }
  });
}

}  // namespace

RmsNormCpu rms_norm_cpu() { return {forward, backward, add_parts}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
