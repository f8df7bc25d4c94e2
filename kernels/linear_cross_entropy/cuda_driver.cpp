#include "kernels/linear_cross_entropy/cuda_driver.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "kernels/linear_cross_entropy/cuda.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr char kFunction[] = "linear_cross_entropy";

std::int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
bool is_short(DType dtype) { return size_of(dtype) == 2; }
std::int64_t size_of_sum(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// Places one after the other.
class Layout {
 public:
  std::int64_t add(std::int64_t bytes) {
    const std::int64_t at = total_;
    total_ += (bytes + 255) / 256 * 256;
    return at;
  }
  std::int64_t total() const { return total_; }

 private:
  std::int64_t total_ = 0;
};

std::byte* place(void* workspace, std::int64_t at) {
  return at < 0 ? nullptr : static_cast<std::byte*>(workspace) + at;
}

template <class Void>
Void* element(Void* data, DType dtype, std::int64_t at) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
  return data == nullptr ? nullptr : static_cast<Byte*>(data) + at * size_of(dtype);
}

// A chunk at a time: the products, and the passes over its logits.
class Chunks {
 public:
  Chunks(const LinearCrossEntropy& problem, const ChunkShape& shape,
         const CrossEntropyMemory& memory, void* workspace, CrossEntropySteps& steps)
      : problem_(problem),
        shape_(shape),
        memory_(memory),
        workspace_(workspace),
        steps_(steps),
        stride_(logits_stride(shape)) {}

  // Calls body(chunk of logits) for all rows of the first columns, then of the next ones;
  // after_columns(columns) behind the last rows.
  template <class Body, class After>
  void for_each(Body body, After after_columns) {
    for (std::int64_t c = 0; c < num_ranges(problem_.vocab_size, shape_.columns); ++c) {
      const IndexRange columns = range_at(problem_.vocab_size, shape_.columns, c);
      for (std::int64_t r = 0; r < num_ranges(problem_.num_rows, shape_.rows); ++r) {
        const IndexRange rows = range_at(problem_.num_rows, shape_.rows, r);
        void* logits = place(workspace_, memory_.logits);
        multiply(rows.size(), columns.size(), problem_.width, {x_of(rows), problem_.width, 1},
                 weight_of(columns), logits, stride_, /*is_sum=*/false);
        body(LogitsPass{logits, stride_, rows, columns, problem_.bias, problem_.target,
                        problem_.ignore_index});
      }
      after_columns(columns);
    }
  }

  // to [rows, D] = (or +=) gradients weight.
  void multiply_weight(const GradientPass& pass, void* to, bool is_sum) {
    const auto& [rows, columns] = ranges(pass);
    const auto [data, row_stride, k_stride] = weight_of(columns);
    multiply(rows.size(), problem_.width, columns.size(), {pass.gradients, stride_, 1},
             {data, k_stride, row_stride}, to, problem_.width, is_sum);
  }

  // to [columns, D] = (or +=) gradients^T x.
  void multiply_x(const GradientPass& pass, void* to, bool is_sum) {
    const auto& [rows, columns] = ranges(pass);
    multiply(columns.size(), problem_.width, rows.size(), {pass.gradients, 1, stride_},
             {x_of(rows), 1, problem_.width}, to, problem_.width, is_sum);
  }

 private:
  struct Ranges {
    IndexRange rows;
    IndexRange columns;
  };
  static Ranges ranges(const GradientPass& pass) { return {pass.chunk.rows, pass.chunk.columns}; }

  const void* x_of(IndexRange rows) const {
    return element(problem_.x, problem_.dtype, rows.begin * problem_.width);
  }
  GemmOperand weight_of(IndexRange columns) const {
    const auto& [data, row_stride, k_stride] = problem_.weight;
    return {element(data, problem_.dtype, columns.begin * row_stride), row_stride, k_stride};
  }

  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b,
                void* c, std::int64_t c_stride, bool is_sum) {
    GemmEpilogue epilogue;
    epilogue.is_wide = is_short(problem_.dtype);
    if (is_sum) {
      epilogue.residual = c;
      epilogue.residual_stride = c_stride;
    }
    steps_.multiply({problem_.dtype, m, n, k, a, b, nullptr, c, c_stride}, epilogue,
                    place(workspace_, memory_.products));
  }

  const LinearCrossEntropy& problem_;
  const ChunkShape& shape_;
  const CrossEntropyMemory& memory_;
  void* workspace_;
  CrossEntropySteps& steps_;
  std::int64_t stride_;
};

RowsPass rows_of(const LinearCrossEntropy& problem) {
  return {problem.num_rows, problem.target, problem.ignore_index, problem.reduction,
          problem.z_loss};
}

std::int64_t product_bytes(const GemmCuda& products, std::int64_t m, std::int64_t n) {
  Gemm problem;
  problem.m = m;
  problem.n = n;
  return products.workspace(problem);
}

void fill_with_zeros(const LinearCrossEntropy& problem,
                     const LinearCrossEntropyGradients& gradients, CrossEntropySteps& steps) {
  const std::int64_t bytes = problem.vocab_size * size_of(problem.dtype);
  if (gradients.grad_weight != nullptr) {
    steps.zero(gradients.grad_weight, bytes * problem.width);
  }
  if (gradients.grad_bias != nullptr) {
    steps.zero(gradients.grad_bias, bytes);
  }
}

// The gradients, chunk by chunk. Sums of products are the results themselves, or float32 beside
// them where those have 16 bits.
class Backward {
 public:
  Backward(const LinearCrossEntropy& problem, const LinearCrossEntropyGradients& gradients,
           const CrossEntropyMemory& memory, void* workspace, CrossEntropySteps& steps)
      : problem_(problem),
        gradients_(gradients),
        steps_(steps),
        dtype_(problem.dtype),
        scale_(reinterpret_cast<GradientScale*>(place(workspace, memory.scale))),
        of_logits_(place(workspace, memory.gradients)),
        wide_x_(place(workspace, memory.wide_x)),
        wide_weight_(place(workspace, memory.wide_weight)),
        wide_bias_(place(workspace, memory.wide_bias)) {
    steps.scale_gradients(dtype_, rows_of(problem), gradients.grad_loss, scale_);
  }

  void add(Chunks& chunks, const LogitsPass& chunk) {
    const GradientPass pass = {chunk,
                               of_logits_ == nullptr ? chunk.logits : of_logits_,
                               gradients_.grad_loss,
                               gradients_.lse,
                               scale_,
                               problem_.vocab_size,
                               problem_.reduction,
                               problem_.z_loss};
    const std::int64_t row = chunk.rows.begin;
    const std::int64_t column = chunk.columns.begin;
    steps_.to_gradients(dtype_, pass);
    if (gradients_.grad_bias != nullptr) {
      steps_.add_columns(
          dtype_, {pass.gradients, chunk.stride, chunk.rows.size(), chunk.columns.size(), row == 0},
          sums(wide_bias_, gradients_.grad_bias, column));
    }
    if (gradients_.grad_x != nullptr) {
      chunks.multiply_weight(pass, sums(wide_x_, gradients_.grad_x, row * problem_.width),
                             /*is_sum=*/column > 0);
    }
    if (gradients_.grad_weight != nullptr) {  // of 16 bits: those of a chunk's columns
      const std::int64_t at = wide_weight_ == nullptr ? column * problem_.width : 0;
      chunks.multiply_x(pass, sums(wide_weight_, gradients_.grad_weight, at),
                        /*is_sum=*/row > 0);
    }
  }

  void finish_columns(IndexRange columns) {
    narrow(wide_weight_, columns.size() * problem_.width,
           element(gradients_.grad_weight, dtype_, columns.begin * problem_.width));
  }

  void finish() {
    narrow(wide_x_, problem_.num_rows * problem_.width, gradients_.grad_x);
    narrow(wide_bias_, problem_.vocab_size, gradients_.grad_bias);
  }

 private:
  void* sums(std::byte* wide, void* result, std::int64_t at) const {
    return wide == nullptr ? element(result, dtype_, at) : wide + at * std::int64_t{sizeof(float)};
  }
  void narrow(const std::byte* wide, std::int64_t count, void* to) {
    if (wide != nullptr) {
      steps_.narrow(dtype_, {reinterpret_cast<const float*>(wide), count, scale_, to, false});
    }
  }

  const LinearCrossEntropy& problem_;
  const LinearCrossEntropyGradients& gradients_;
  CrossEntropySteps& steps_;
  DType dtype_;
  GradientScale* scale_;
  std::byte* of_logits_;
  std::byte* wide_x_;
  std::byte* wide_weight_;
  std::byte* wide_bias_;
};

}  // namespace

void check_linear_cross_entropy_cuda(const LinearCrossEntropy& problem) {
  const std::int64_t num_rows = problem.num_rows;
  const std::int64_t width = problem.width;
  const std::int64_t vocab_size = problem.vocab_size;
  require<ShapeError>(
      num_rows >= 0 && width >= 0 && vocab_size >= 1, kFunction, "N and D must be >= 0, V >= 1",
      std::to_string(num_rows) + ", " + std::to_string(width) + ", " + std::to_string(vocab_size));
  const auto& [data, row_stride, k_stride] = problem.weight;
  require<ValueError>(row_stride == 1 || k_stride == 1, kFunction, "a stride of weight must be 1",
                      std::to_string(row_stride) + " and " + std::to_string(k_stride));
}

CrossEntropyMemory forward_memory(const LinearCrossEntropy& problem, const ChunkShape& shape,
                                  const GemmCuda& products) {
  Layout layout;
  CrossEntropyMemory memory;
  memory.logits = layout.add(shape.rows * logits_stride(shape) * size_of_sum(problem.dtype));
  memory.states = layout.add(problem.num_rows * std::int64_t{sizeof(LogitsState)});
  memory.parts = layout.add(logits_blocks(problem.num_rows) * std::int64_t{sizeof(LossPart)});
  memory.products = layout.add(product_bytes(products, shape.rows, shape.columns));
  memory.total = layout.total();
  return memory;
}

CrossEntropyMemory backward_memory(const LinearCrossEntropy& problem,
                                   const LinearCrossEntropyGradients& gradients,
                                   const ChunkShape& shape, const GemmCuda& products) {
  constexpr std::int64_t kFloat = sizeof(float);
  const bool has_short = is_short(problem.dtype);
  const std::int64_t elements = shape.rows * logits_stride(shape);
  Layout layout;
  CrossEntropyMemory memory;
  memory.logits = layout.add(elements * size_of_sum(problem.dtype));
  memory.scale = layout.add(sizeof(GradientScale));
  if (has_short) {
    memory.gradients = layout.add(elements * size_of(problem.dtype));
  }
  if (has_short && gradients.grad_x != nullptr) {
    memory.wide_x = layout.add(problem.num_rows * problem.width * kFloat);
  }
  if (has_short && gradients.grad_weight != nullptr) {
    memory.wide_weight = layout.add(shape.columns * problem.width * kFloat);
  }
  if (has_short && gradients.grad_bias != nullptr) {
    memory.wide_bias = layout.add(problem.vocab_size * kFloat);
  }
  memory.products = layout.add(std::max({product_bytes(products, shape.rows, shape.columns),
                                         product_bytes(products, shape.rows, problem.width),
                                         product_bytes(products, shape.columns, problem.width)}));
  memory.total = layout.total();
  return memory;
}

std::int64_t linear_cross_entropy_cuda_workspace(const LinearCrossEntropy& problem,
                                                 const GemmCuda& products) {
  const ChunkShape shape = cuda_chunk_shape(problem.num_rows, problem.width, problem.vocab_size);
  return forward_memory(problem, shape, products).total;
}

std::int64_t linear_cross_entropy_backward_cuda_workspace(
    const LinearCrossEntropy& problem, const LinearCrossEntropyGradients& gradients,
    const GemmCuda& products) {
  const ChunkShape shape = cuda_chunk_shape(problem.num_rows, problem.width, problem.vocab_size);
  return backward_memory(problem, gradients, shape, products).total;
}

void run_forward(const LinearCrossEntropy& problem, const LinearCrossEntropyResult& result,
                 const ChunkShape& shape, const CrossEntropyMemory& memory, void* workspace,
                 CrossEntropySteps& steps) {
  const RowsPass rows = rows_of(problem);
  auto* states = reinterpret_cast<LogitsState*>(place(workspace, memory.states));
  auto* parts = reinterpret_cast<LossPart*>(place(workspace, memory.parts));
  if (problem.num_rows > 0) {
    steps.begin_rows(problem.num_rows, states);
    Chunks(problem, shape, memory, workspace, steps)
        .for_each([&](const LogitsPass& pass) { steps.add_logits(problem.dtype, pass, states); },
                  [](IndexRange) {});
    steps.finish_rows(problem.dtype, rows, states, result, parts);
  }
  if (problem.reduction != Reduction::kNone) {
    steps.finish_loss(problem.dtype, rows, parts, result.loss);
  }
}

void run_backward(const LinearCrossEntropy& problem, const LinearCrossEntropyGradients& gradients,
                  const ChunkShape& shape, const CrossEntropyMemory& memory, void* workspace,
                  CrossEntropySteps& steps) {
  if (problem.num_rows == 0) {
    fill_with_zeros(problem, gradients, steps);
    return;
  }
  Backward backward(problem, gradients, memory, workspace, steps);
  Chunks chunks(problem, shape, memory, workspace, steps);
  chunks.for_each([&](const LogitsPass& chunk) { backward.add(chunks, chunk); },
                  [&](IndexRange columns) { backward.finish_columns(columns); });
  backward.finish();
}

}  // namespace paperlab::kernels
