#pragma once
// The order of the work on a GPU, by steps that the GPU launches and tests run on the CPU: chunks,
// where each product reads and writes, and the workspace.

#include "kernels/common/cuda/gemm_function.h"
#include "kernels/linear_cross_entropy/block_backward.h"

namespace paperlab::kernels {

// Of a chunk on a GPU, in logits: 64 MiB in float32. A GPU needs larger products than a CPU.
constexpr std::int64_t kCudaChunkElements = std::int64_t{1} << 24;
constexpr std::int64_t kCudaChunkRows = 8192;
// Each chunk of columns adds to the gradient of x once more: from 1024 columns on a product has
// more operations than that costs.
constexpr std::int64_t kLeastCudaColumns = 2048;

PAPERLAB_HD constexpr ChunkShape cuda_chunk_shape(std::int64_t num_rows, std::int64_t width,
                                                  std::int64_t vocab_size) {
  const std::int64_t rows = even_size(num_rows > 0 ? num_rows : 1, kCudaChunkRows, 16);
  const std::int64_t many = kCudaChunkElements / (rows > width ? rows : width);
  return {rows, even_size(vocab_size, many > kLeastCudaColumns ? many : kLeastCudaColumns, 64)};
}

// One kernel or product each; arguments as in block.h. `dtype` is that of the operands.
class CrossEntropySteps {
 public:
  virtual ~CrossEntropySteps() = default;
  virtual void multiply(const Gemm& problem, const GemmEpilogue& epilogue, void* workspace) = 0;
  virtual void zero(void* data, std::int64_t bytes) = 0;
  virtual void begin_rows(std::int64_t num_rows, LogitsState* states) = 0;
  virtual void add_logits(DType dtype, const LogitsPass& pass, LogitsState* states) = 0;
  virtual void finish_rows(DType dtype, const RowsPass& pass, const LogitsState* states,
                           const LinearCrossEntropyResult& result, LossPart* parts) = 0;
  virtual void finish_loss(DType dtype, const RowsPass& pass, const LossPart* parts,
                           void* loss) = 0;
  virtual void scale_gradients(DType dtype, const RowsPass& pass, const void* grad_loss,
                               GradientScale* scale) = 0;
  virtual void to_gradients(DType dtype, const GradientPass& pass) = 0;
  virtual void add_columns(DType dtype, const ColumnsPass& pass, void* sums) = 0;
  virtual void narrow(DType dtype, const NarrowPass& pass) = 0;
};

// Places in the workspace, in bytes from its start; what is not needed has none (-1).
struct CrossEntropyMemory {
  std::int64_t logits = -1;
  std::int64_t gradients = -1;    // of 16 bits; else they replace the logits
  std::int64_t states = -1;       // [N]
  std::int64_t parts = -1;        // [blocks of rows]
  std::int64_t scale = -1;        // [1]
  std::int64_t wide_x = -1;       // [N, D] float32 for gradients of 16 bits
  std::int64_t wide_weight = -1;  // [columns of a chunk, D]
  std::int64_t wide_bias = -1;    // [V]
  std::int64_t products = -1;
  std::int64_t total = 0;
};

CrossEntropyMemory forward_memory(const LinearCrossEntropy& problem, const ChunkShape& shape,
                                  const GemmCuda& products);
CrossEntropyMemory backward_memory(const LinearCrossEntropy& problem,
                                   const LinearCrossEntropyGradients& gradients,
                                   const ChunkShape& shape, const GemmCuda& products);

// A row of a chunk in memory: whole packs of every dtype, lines that are not a power of two apart.
constexpr std::int64_t logits_stride(const ChunkShape& shape) {
  return num_ranges(shape.columns, 16) * 16 + 16;
}

// The whole forward and backward pass.
void run_forward(const LinearCrossEntropy& problem, const LinearCrossEntropyResult& result,
                 const ChunkShape& shape, const CrossEntropyMemory& memory, void* workspace,
                 CrossEntropySteps& steps);
void run_backward(const LinearCrossEntropy& problem, const LinearCrossEntropyGradients& gradients,
                  const ChunkShape& shape, const CrossEntropyMemory& memory, void* workspace,
                  CrossEntropySteps& steps);

}  // namespace paperlab::kernels
