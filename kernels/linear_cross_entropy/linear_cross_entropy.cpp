#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/lines.h"
#include "kernels/common/number.h"
#include "kernels/linear_cross_entropy/cpu.h"
#include "kernels/linear_cross_entropy/tile.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr char kFunction[] = "linear_cross_entropy";

// Of the elementwise passes, ten microseconds of work.
constexpr std::int64_t kTaskElements = 32768;

std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

void check(const LinearCrossEntropy& problem) {
  const std::int64_t num_rows = problem.num_rows;
  const std::int64_t width = problem.width;
  const std::int64_t vocab_size = problem.vocab_size;
  require<ShapeError>(
      num_rows >= 0 && width >= 0 && vocab_size >= 1, kFunction, "N and D must be >= 0, V >= 1",
      std::to_string(num_rows) + ", " + std::to_string(width) + ", " + std::to_string(vocab_size));
  const auto& [data, row_stride, k_stride] = problem.weight;
  require<ValueError>(k_stride == 1 || (row_stride == 1 && problem.dtype != DType::kBFloat16),
                      kFunction, "a stride of weight must be 1, in bfloat16 that of its columns",
                      std::to_string(row_stride) + " and " + std::to_string(k_stride));
  const std::int64_t bad =
      first_bad_target(problem.target, num_rows, vocab_size, problem.ignore_index);
  require<ValueError>(bad < 0, kFunction,
                      "target must be 0.." + std::to_string(vocab_size - 1) + " or ignore_index",
                      std::to_string(bad < 0 ? 0 : problem.target[bad]));
}

bool counts(const LinearCrossEntropy& problem, std::int64_t row) {
  return problem.target[row] != problem.ignore_index;
}

std::int64_t num_counted(const LinearCrossEntropy& problem) {
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    count += counts(problem, row) ? 1 : 0;
  }
  return count;
}

// A chunk of logits at a time, and what its products read.
class ChunkedLogits {
 public:
  ChunkedLogits(const LinearCrossEntropy& problem, GemmFunction multiply, const Executor& executor)
      : problem_(problem),
        multiply_(multiply),
        executor_(executor),
        dtype_(statistics_dtype(problem.dtype)),
        cpu_(dtype_ == DType::kFloat64
                 ? logits_float64()
                 : select_isa(generic::logits_cpu, avx2::logits_cpu, avx512::logits_cpu)()),
        shape_(chunk_shape(problem.num_rows, problem.width, problem.vocab_size)),
        logits_(take_lines(shape_.rows * stride() * size())) {
    if (is_bfloat16()) {
      x_ = take_lines(shape_.rows * problem.width * size());
      weight_ = take_lines(shape_.columns * problem.width * size());
    }
    if (is_bfloat16() && problem.bias != nullptr) {
      bias_ = take_lines(problem.vocab_size * size());
      widen(problem.bias, problem.vocab_size, bias_.get());
    }
  }

  const LogitsCpu& cpu() const { return cpu_; }
  DType dtype() const { return dtype_; }  // of logits and sums
  std::int64_t size() const { return bytes_of(dtype_); }
  bool is_bfloat16() const { return problem_.dtype == DType::kBFloat16; }
  const ChunkShape& shape() const { return shape_; }

  // Calls body(chunk of logits) for all rows of the first columns, then of the next ones;
  // after_columns(columns) behind the last rows.
  template <class Body, class After>
  void for_each(Body body, After after_columns) {
    for (std::int64_t c = 0; c < num_ranges(problem_.vocab_size, shape_.columns); ++c) {
      columns_ = range_at(problem_.vocab_size, shape_.columns, c);
      read_weight();
      for (std::int64_t r = 0; r < num_ranges(problem_.num_rows, shape_.rows); ++r) {
        const IndexRange rows = range_at(problem_.num_rows, shape_.rows, r);
        read_x(rows);
        const LogitsChunk chunk = {logits_.get(), stride(), rows, columns_};
        const GemmOperand a = {x_of_rows_, problem_.width, 1};
        product(rows.size(), columns_.size(), problem_.width, a, weight_of_columns_, bias(),
                chunk.data, chunk.stride);
        body(chunk);
      }
      after_columns(columns_);
    }
  }

  // Of the chunk's rows, by tasks.
  template <class Body>
  void for_rows(const LogitsChunk& chunk, Body body) const {
    const std::int64_t size = rows_of_task(chunk.columns.size());
    parallel_for(executor_, num_ranges(chunk.rows.size(), size), [&](std::int64_t task, int) {
      const IndexRange of = range_at(chunk.rows.size(), size, task);
      body(IndexRange{chunk.rows.begin + of.begin, chunk.rows.begin + of.end});
    });
  }

  // to [rows, D] = chunk weight.
  void multiply_weight(const LogitsChunk& chunk, void* to) const {
    const auto& [data, row_stride, k_stride] = weight_of_columns_;
    product(chunk.rows.size(), problem_.width, chunk.columns.size(), {chunk.data, chunk.stride, 1},
            {data, k_stride, row_stride}, nullptr, to, problem_.width);
  }

  // to [columns, D] = chunk^T x.
  void multiply_x(const LogitsChunk& chunk, void* to) const {
    product(chunk.columns.size(), problem_.width, chunk.rows.size(), {chunk.data, 1, chunk.stride},
            {x_of_rows_, 1, problem_.width}, nullptr, to, problem_.width);
  }

  void add_columns(const LogitsChunk& chunk, void* sums) const {
    const std::int64_t count = chunk.columns.size();
    parallel_for(executor_, num_ranges(count, kTaskColumns), [&](std::int64_t task, int) {
      const IndexRange of = range_at(count, kTaskColumns, task);
      cpu_.add_columns(chunk, {chunk.columns.begin + of.begin, chunk.columns.begin + of.end}, sums);
    });
  }

  void add(const void* from, std::int64_t count, void* to) const {
    for_elements(count, [&](std::int64_t at, std::int64_t of) {
      cpu_.add(static_cast<const std::byte*>(from) + at * size(), of,
               static_cast<std::byte*>(to) + at * size());
    });
  }
  void widen(const void* from, std::int64_t count, void* to) const {
    for_elements(count, [&](std::int64_t at, std::int64_t of) {
      cpu_.widen(static_cast<const std::uint16_t*>(from) + at, of, static_cast<float*>(to) + at);
    });
  }
  void narrow(const void* from, std::int64_t count, void* to) const {
    for_elements(count, [&](std::int64_t at, std::int64_t of) {
      cpu_.narrow(static_cast<const float*>(from) + at, of, static_cast<std::uint16_t*>(to) + at);
    });
  }

 private:
  // Rows that are a power of two apart would share the lines of a cache.
  std::int64_t stride() const { return num_ranges(shape_.columns, 16) * 16 + 16; }

  template <class Body>
  void for_elements(std::int64_t count, Body body) const {
    parallel_for(executor_, num_ranges(count, kTaskElements), [&](std::int64_t task, int) {
      const IndexRange of = range_at(count, kTaskElements, task);
      body(of.begin, of.size());
    });
  }

  void product(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b,
               const void* of_bias, void* c, std::int64_t c_stride) const {
    multiply_({dtype_, m, n, k, a, b, of_bias, c, c_stride}, executor_);
  }

  const void* bias() const {
    const void* all = bias_ == nullptr ? problem_.bias : bias_.get();
    return all == nullptr ? nullptr : static_cast<const std::byte*>(all) + columns_.begin * size();
  }

  void read_weight() {
    const auto& [data, row_stride, k_stride] = problem_.weight;
    const auto* from = static_cast<const std::byte*>(data) +
                       columns_.begin * row_stride * bytes_of(problem_.dtype);
    weight_of_columns_ = {from, row_stride, k_stride};
    if (is_bfloat16()) {
      const std::int64_t width = problem_.width;
      parallel_for(executor_, columns_.size(), [&, stride = row_stride](std::int64_t row, int) {
        cpu_.widen(reinterpret_cast<const std::uint16_t*>(from) + row * stride, width,
                   reinterpret_cast<float*>(weight_.get()) + row * width);
      });
      weight_of_columns_ = {weight_.get(), width, 1};
    }
  }

  void read_x(IndexRange rows) {
    const std::int64_t width = problem_.width;
    const auto* from =
        static_cast<const std::byte*>(problem_.x) + rows.begin * width * bytes_of(problem_.dtype);
    x_of_rows_ = from;
    if (is_bfloat16()) {
      if (rows != rows_of_x_) {
        widen(from, rows.size() * width, x_.get());
        rows_of_x_ = rows;
      }
      x_of_rows_ = x_.get();
    }
  }

  const LinearCrossEntropy& problem_;
  GemmFunction multiply_;
  const Executor& executor_;
  DType dtype_;
  LogitsCpu cpu_;
  ChunkShape shape_;
  Lines logits_;
  Lines x_;       // bfloat16: the chunk's rows in float32
  Lines weight_;  // likewise its columns' weights
  Lines bias_;
  IndexRange columns_{0, 0};
  IndexRange rows_of_x_{0, 0};
  const void* x_of_rows_ = nullptr;
  GemmOperand weight_of_columns_;
};

void store_results(const LinearCrossEntropy& problem, const std::vector<RowState>& states,
                   const LinearCrossEntropyResult& result) {
  const DType dtype = statistics_dtype(problem.dtype);
  double sum = 0.0;
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    const RowState& state = states[static_cast<std::size_t>(row)];
    const double lse = state.most + std::log(state.sum);
    const double loss =
        counts(problem, row) ? lse - state.of_target + problem.z_loss * lse * lse : 0.0;
    sum += loss;
    store_number(result.lse, dtype, row, lse);
    if (problem.reduction == Reduction::kNone) {
      store_number(result.loss, dtype, row, loss);
    }
  }
  if (problem.reduction != Reduction::kNone) {
    const double count = static_cast<double>(num_counted(problem));
    store_number(result.loss, dtype, 0, problem.reduction == Reduction::kMean ? sum / count : sum);
  }
}

std::vector<RowGradient> row_gradients(const LinearCrossEntropy& problem,
                                       const LinearCrossEntropyGradients& gradients) {
  const DType dtype = statistics_dtype(problem.dtype);
  const bool is_mean = problem.reduction == Reduction::kMean;
  const double divisor = is_mean ? static_cast<double>(num_counted(problem)) : 1.0;
  std::vector<RowGradient> rows(static_cast<std::size_t>(problem.num_rows));
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    if (counts(problem, row)) {
      const std::int64_t at = problem.reduction == Reduction::kNone ? row : 0;
      const double grad = load_number(gradients.grad_loss, dtype, at) / divisor;
      const double lse = load_number(gradients.lse, dtype, row);
      rows[static_cast<std::size_t>(row)] = {lse, grad * (1.0 + 2.0 * problem.z_loss * lse), grad};
    }
  }
  return rows;
}

// Sums of products over chunks, [lines, D], in the dtype that they are added up in.
class Sums {
 public:
  // `result` [all lines, D] of `dtype`, where it is of the dtype of sums; null: not wanted.
  Sums(const ChunkedLogits& chunks, void* result, std::int64_t lines, std::int64_t lines_of_chunk,
       std::int64_t width)
      : chunks_(chunks), result_(result), width_(width) {
    if (result == nullptr) {
      return;
    }
    if (chunks.is_bfloat16()) {
      wide_ = take_lines(lines * width * chunks.size());
    }
    term_bytes_ = lines_of_chunk * width * chunks.size();
  }

  bool is_wanted() const { return result_ != nullptr; }

  // Adds what product(to) writes, [count, D], to lines from `line` on; writes it if `is_first`.
  template <class Product>
  void add(std::int64_t line, std::int64_t count, bool is_first, Product product) {
    auto* all = chunks_.is_bfloat16() ? wide_.get() : static_cast<std::byte*>(result_);
    std::byte* to = all + line * width_ * chunks_.size();
    if (is_first) {
      product(to);
      return;
    }
    if (term_ == nullptr) {
      term_ = take_lines(term_bytes_);
    }
    product(term_.get());
    chunks_.add(term_.get(), count * width_, to);
  }

  // Rounds bfloat16 sums of lines 0..count-1 into lines from `line` of the result on.
  void finish(std::int64_t line, std::int64_t count) {
    if (chunks_.is_bfloat16()) {
      chunks_.narrow(wide_.get(), count * width_,
                     static_cast<std::uint16_t*>(result_) + line * width_);
    }
  }

 private:
  const ChunkedLogits& chunks_;
  void* result_;
  std::int64_t width_;
  std::int64_t term_bytes_ = 0;
  Lines wide_;
  Lines term_;
};

void fill_with_zeros(const LinearCrossEntropy& problem,
                     const LinearCrossEntropyGradients& gradients) {
  const auto bytes = static_cast<std::size_t>(problem.vocab_size * bytes_of(problem.dtype));
  if (gradients.grad_weight != nullptr) {
    std::memset(gradients.grad_weight, 0, bytes * static_cast<std::size_t>(problem.width));
  }
  if (gradients.grad_bias != nullptr) {
    std::memset(gradients.grad_bias, 0, bytes);
  }
}

}  // namespace

std::int64_t first_bad_target(const std::int64_t* target, std::int64_t num_rows,
                              std::int64_t vocab_size, std::int64_t ignore_index) {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const bool is_inside = target[row] >= 0 && target[row] < vocab_size;
    if (!is_inside && target[row] != ignore_index) {
      return row;
    }
  }
  return -1;
}

void linear_cross_entropy(const LinearCrossEntropy& problem, const LinearCrossEntropyResult& result,
                          GemmFunction multiply, const Executor& executor) {
  check(problem);
  require_cpu_dtype(problem.dtype, "linear_cross_entropy");
  const double lowest = -std::numeric_limits<double>::infinity();
  std::vector<RowState> states(static_cast<std::size_t>(problem.num_rows), {lowest, 0.0, 0.0});
  if (problem.num_rows > 0) {
    ChunkedLogits chunks(problem, multiply, executor);
    chunks.for_each(
        [&](const LogitsChunk& chunk) {
          chunks.for_rows(chunk, [&](IndexRange rows) {
            chunks.cpu().add_logits(chunk, rows, problem.target, states.data());
          });
        },
        [](IndexRange) {});
  }
  store_results(problem, states, result);
}

void linear_cross_entropy_backward(const LinearCrossEntropy& problem,
                                   const LinearCrossEntropyGradients& gradients,
                                   GemmFunction multiply, const Executor& executor) {
  check(problem);
  require_cpu_dtype(problem.dtype, "linear_cross_entropy_backward");
  if (problem.num_rows == 0) {
    fill_with_zeros(problem, gradients);
    return;
  }
  const std::vector<RowGradient> of_rows = row_gradients(problem, gradients);
  ChunkedLogits chunks(problem, multiply, executor);
  const auto& [chunk_rows, chunk_columns] = chunks.shape();
  Sums grad_x(chunks, gradients.grad_x, problem.num_rows, chunk_rows, problem.width);
  Sums grad_weight(chunks, gradients.grad_weight, chunk_columns, chunk_columns, problem.width);
  std::vector<std::byte> grad_bias(
      gradients.grad_bias == nullptr
          ? 0
          : static_cast<std::size_t>(problem.vocab_size * chunks.size()));  // 0 in every dtype
  chunks.for_each(
      [&](const LogitsChunk& chunk) {
        const auto& [data, stride, rows, columns] = chunk;
        chunks.for_rows(chunk, [&](IndexRange part) {
          chunks.cpu().to_gradients(chunk, part, problem.target, of_rows.data());
        });
        if (!grad_bias.empty()) {
          chunks.add_columns(chunk, grad_bias.data());
        }
        if (grad_x.is_wanted()) {
          grad_x.add(rows.begin, rows.size(), columns.begin == 0,
                     [&](void* to) { chunks.multiply_weight(chunk, to); });
        }
        if (grad_weight.is_wanted()) {
          grad_weight.add(chunks.is_bfloat16() ? 0 : columns.begin, columns.size(), rows.begin == 0,
                          [&](void* to) { chunks.multiply_x(chunk, to); });
        }
      },
      [&](IndexRange columns) {
        if (grad_weight.is_wanted()) {
          grad_weight.finish(columns.begin, columns.size());
        }
      });
  if (grad_x.is_wanted()) {
    grad_x.finish(0, problem.num_rows);
  }
  if (!grad_bias.empty() && chunks.is_bfloat16()) {
    chunks.narrow(grad_bias.data(), problem.vocab_size, gradients.grad_bias);
  } else if (!grad_bias.empty()) {
    std::memcpy(gradients.grad_bias, grad_bias.data(), grad_bias.size());
  }
}

}  // namespace paperlab::kernels
