#pragma once
// A tile of a product of the generator, 64 x 64, on one block of GPU threads (host-device): fused
// multiply-adds, or the tensor cores in tf32. bfloat16 and float16 numbers are exact in tf32; a
// float32 number goes as the sum of two, so that a product is right to 2^-21. Terms come 32 at a
// time, the next ones while these are in use, and are added in the order of their numbers.

#include "kernels/depth_aggregate/block.h"
#include "kernels/depth_aggregate/block_gelu.h"
#include "kernels/depth_aggregate/block_operand.h"
#include "kernels/depth_aggregate/block_tensor.h"

// A loop that is not unrolled: it has work enough, and unrolled would take more registers.
#ifdef __CUDA_ARCH__
#define PAPERLAB_ROLLED _Pragma("unroll 1")
#else
#define PAPERLAB_ROLLED
#endif

namespace paperlab::kernels::depth {

// What is made of a sum s of row i and column j:
enum class ProductKind : std::uint8_t {
  kPlain,    // s
  kZ,        // s r[i]; gelu of it goes to h[i, j]
  kWeights,  // s + bias[j]
  kGradZ,    // s gelu'(z[i, j]) r[i]; gelu(z[i, j]) goes to h[i, j], if it is wanted
  kGradX,    // s - of_x[i] x[i, j], perhaps plus what is there
};

// Element (i, j) is the sum of a(i, t) b(j, t) over the terms t.
struct ProductTask {
  ProductKind kind;
  GeluForm gelu;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t terms;
  std::int64_t terms_of_split;  // each split's sums are kept apart; a multiple of kTileTerms
  ProductOperand a;
  ProductOperand b;
  void* to;  // [splits, rows, columns]
  DType to_dtype;
  DType dtype;              // of bias and x
  const void* inverse_rms;  // [rows]
  const void* bias;         // [columns]
  const void* z;            // [rows, columns]
  void* h;                  // [rows, columns]
  const void* x;            // [rows, columns]
  const void* of_x;         // [rows]
  bool adds;

  PAPERLAB_HD std::int64_t num_splits() const {
    return terms > 0 ? num_blocks(terms, terms_of_split) : 1;
  }
  PAPERLAB_HD std::int64_t num_tiles() const {
    return num_blocks(rows, kTileSize) * num_blocks(columns, kTileSize);
  }
};

template <class Number>
struct alignas(16) ProductMemory {
  Number a[kTileSize * kTileStride];
  Number b[kTileSize * kTileStride];
};

constexpr int kSumsOfThread = kTileSize * kTileSize / kProductThreads;

// How the sums of a tile are spread over the threads, and how 32 terms are added to them.
template <class N>
struct PlainTile {
  using Number = N;
  static constexpr int kRows = 8;
  static constexpr int kColumns = 4;
  struct Registers {
    N sums[kSumsOfThread];
    N a[kQuadsOfThread][kQuad];  // of the next terms
    N b[kQuadsOfThread][kQuad];
  };

  static PAPERLAB_HD constexpr int row_of(int thread, int i) {
    return thread / 16 + i / kColumns * (kTileSize / kRows);
  }
  static PAPERLAB_HD constexpr int column_of(int thread, int i) {
    return thread % 16 + i % kColumns * (kTileSize / kColumns);
  }

  static PAPERLAB_HD void load(const N* tile, int row, int term, N (&to)[kQuad]) {
    load_whole_quad(tile, DType::kFloat32, row * kTileStride + term, to);
  }

  template <class Block>
  static PAPERLAB_HD void add_terms(Block& team, const ProductMemory<N>& memory,
                                    const ProductTask& /*task*/) {
    team.each_alone([&](int thread, Registers& own) {
      PAPERLAB_ROLLED
      for (int term = 0; term < kTileTerms; term += kQuad) {
        N b[kColumns][kQuad];
        PAPERLAB_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          load(memory.b, column_of(thread, c), term, b[c]);
        }
        PAPERLAB_UNROLL
        for (int r = 0; r < kRows; ++r) {
          N a[kQuad];
          load(memory.a, row_of(thread, r * kColumns), term, a);
          PAPERLAB_UNROLL
          for (int i = 0; i < kColumns * kQuad; ++i) {
            N& sum = own.sums[r * kColumns + i % kColumns];
            sum = fused(a[i / kColumns], b[i % kColumns][i / kColumns], sum);
          }
        }
      }
    });
  }
};

// Four warps of 32 x 32: 2 x 4 tiles of 16 x 8.
struct TensorTile {
  using Number = float;
  static constexpr int kRows = 2;
  static constexpr int kColumns = 4;
  struct Registers {
    float sums[kSumsOfThread];
    float a[kQuadsOfThread][kQuad];
    float b[kQuadsOfThread][kQuad];
    SplitNumbers<4> left[kRows];
    SplitNumbers<2> right;
  };

  static PAPERLAB_HD constexpr int row_of(int thread, int i) {
    return thread / kWarp / 2 * 32 + i / 16 * 16 + tensor_sum_row(thread % kWarp, i % 4);
  }
  static PAPERLAB_HD constexpr int column_of(int thread, int i) {
    return thread / kWarp % 2 * 32 + i / 4 % 4 * 8 + tensor_sum_column(thread % kWarp, i % 4);
  }

  // A lane's elements of eight terms: of all rows of its warp, or of column tile `i`.
  static PAPERLAB_HD void load_left(const ProductMemory<float>& memory, bool is_exact, int thread,
                                    int term, Registers& own) {
    const int lane = thread % kWarp;
    PAPERLAB_UNROLL
    for (int i = 0; i < kRows * 4; ++i) {
      const int row = thread / kWarp / 2 * 32 + i / 4 * 16 + tensor_left_row(lane, i % 4);
      own.left[i / 4].high[i % 4] =
          memory.a[row * kTileStride + term + tensor_left_term(lane, i % 4)];
    }
    if (!is_exact) {
      PAPERLAB_UNROLL
      for (int i = 0; i < kRows; ++i) {
        split(own.left[i]);
      }
    }
  }
  static PAPERLAB_HD void load_right(const ProductMemory<float>& memory, bool is_exact, int thread,
                                     int term, int i, Registers& own) {
    const int lane = thread % kWarp;
    const int column = thread / kWarp % 2 * 32 + i * 8 + tensor_right_column(lane);
    PAPERLAB_UNROLL
    for (int e = 0; e < 2; ++e) {
      own.right.high[e] = memory.b[column * kTileStride + term + tensor_right_term(lane, e)];
    }
    if (!is_exact) {
      split(own.right);
    }
  }

  // The small products first.
  template <class Block>
  static PAPERLAB_HD void add_terms(Block& team, const ProductMemory<float>& memory,
                                    const ProductTask& task) {
    converge(team);  // the loads of the next terms branch
    PAPERLAB_ROLLED
    for (int term = 0; term < kTileTerms; term += kTensorTerms) {
      team.each_alone([&](int thread, Registers& own) {
        load_left(memory, task.a.is_exact, thread, term, own);
      });
      PAPERLAB_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        team.each_alone([&](int thread, Registers& own) {
          load_right(memory, task.b.is_exact, thread, term, c, own);
        });
        PAPERLAB_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const std::ptrdiff_t at = std::ptrdiff_t{4} * (r * kColumns + c);
          if (!task.a.is_exact) {
            multiply_add(team, [&](Registers& own) {
              return TensorStep{own.left[r].low, own.right.high, own.sums + at};
            });
          }
          if (!task.b.is_exact) {
            multiply_add(team, [&](Registers& own) {
              return TensorStep{own.left[r].high, own.right.low, own.sums + at};
            });
          }
          multiply_add(team, [&](Registers& own) {
            return TensorStep{own.left[r].high, own.right.high, own.sums + at};
          });
        }
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------

template <class Number>
PAPERLAB_HD void store_product(const ProductTask& task, std::int64_t split, std::int64_t row,
                               std::int64_t column, Number sum) {
  const std::int64_t at = row * task.columns + column;
  const auto number = [](const void* data, std::int64_t i) {
    return static_cast<const Number*>(data)[i];
  };
  if (task.kind == ProductKind::kZ || task.kind == ProductKind::kGradZ) {
    sum *= number(task.inverse_rms, row);
    const GeluNumbers<Number> gelu =
        gelu_of(task.kind == ProductKind::kZ ? sum : number(task.z, at), task.gelu);
    sum *= task.kind == ProductKind::kZ ? Number{1} : gelu.slope;
    if (task.h != nullptr) {
      static_cast<Number*>(task.h)[at] = gelu.value;
    }
  } else if (task.kind == ProductKind::kWeights) {
    sum += number_at<Number>(task.bias, task.dtype, column);
  } else if (task.kind == ProductKind::kGradX) {
    sum = fused(-number(task.of_x, row), number_at<Number>(task.x, task.dtype, at), sum);
    sum += task.adds ? number_at<Number>(task.to, task.to_dtype, at) : Number{0};
  }
  store_number_at(task.to, task.to_dtype, split * task.rows * task.columns + at, sum);
}

// Block `block` of num_splits() num_tiles(): the tiles of a row side by side, they share its terms.
template <class Tile, Team Block>
PAPERLAB_HD void product_block(Block& team, ProductMemory<typename Tile::Number>& memory,
                               const ProductTask& task, std::int64_t block) {
  using Number = typename Tile::Number;
  using Registers = typename Tile::Registers;
  const std::int64_t num_columns = num_blocks(task.columns, kTileSize);
  const std::int64_t split = block / task.num_tiles();
  const std::int64_t tile = block % task.num_tiles();
  const TokenRange terms = block_at(task.terms, task.terms_of_split, split);
  OperandRange of_a{tile / num_columns * kTileSize, task.rows, terms.begin, terms.end};
  OperandRange of_b{tile % num_columns * kTileSize, task.columns, terms.begin, terms.end};
  const auto ask = [&](int thread, Registers& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kQuadsOfThread; ++i) {
      load_quad(task.a, of_a, quad_place(thread, i, task.a.is_along_terms()), own.a[i]);
      load_quad(task.b, of_b, quad_place(thread, i, task.b.is_along_terms()), own.b[i]);
    }
  };
  team.each_alone([&](int thread, Registers& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kSumsOfThread; ++i) {
      own.sums[i] = Number{0};
    }
    ask(thread, own);
  });
  for (std::int64_t term = terms.begin; term < terms.end; term += kTileTerms) {
    of_a.first_term = of_b.first_term = term + kTileTerms;
    team.each([&](int thread, Registers& own) {
      PAPERLAB_UNROLL
      for (int i = 0; i < kQuadsOfThread; ++i) {
        store_quad(own.a[i], quad_place(thread, i, task.a.is_along_terms()),
                   task.a.is_along_terms(), memory.a);
        store_quad(own.b[i], quad_place(thread, i, task.b.is_along_terms()),
                   task.b.is_along_terms(), memory.b);
      }
    });
    team.each_alone(ask);
    Tile::add_terms(team, memory, task);
    team.each([](int /*thread*/, Registers& /*own*/) {});
  }
  team.each_alone([&](int thread, Registers& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kSumsOfThread; ++i) {
      const std::int64_t row = of_a.first_row + Tile::row_of(thread, i);
      const std::int64_t column = of_b.first_row + Tile::column_of(thread, i);
      if (row < task.rows && column < task.columns) {
        store_product(task, split, row, column, own.sums[i]);
      }
    }
  });
}

}  // namespace paperlab::kernels::depth
