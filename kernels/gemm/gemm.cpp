#include "kernels/gemm/gemm.h"

#include <string>
#include <utility>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/lines.h"
#include "kernels/common/number.h"
#include "kernels/gemm/cpu.h"
#include "kernels/gemm/tile.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

// Below so many multiply-adds waking other threads takes longer than the work.
constexpr std::int64_t kSerialWork = std::int64_t{1} << 16;

void check(const Gemm& problem) {
  const auto& [dtype, m, n, k, a, b, bias, c, c_stride] = problem;
  require<ShapeError>(m >= 0 && n >= 0 && k >= 0, "gemm", "M, N and K must be >= 0",
                      std::to_string(m) + ", " + std::to_string(n) + ", " + std::to_string(k));
  for (const GemmOperand& operand : {a, b}) {
    require<ValueError>(
        operand.row_stride == 1 || operand.k_stride == 1, "gemm", "a stride of A and B must be 1",
        std::to_string(operand.row_stride) + " and " + std::to_string(operand.k_stride));
  }
}

// K = 0.
void fill_with_bias(const Gemm& problem) {
  for (std::int64_t m = 0; m < problem.m; ++m) {
    for (std::int64_t n = 0; n < problem.n; ++n) {
      store_number(problem.c, problem.dtype, m * problem.c_stride + n,
                   problem.bias == nullptr ? 0.0 : load_number(problem.bias, problem.dtype, n));
    }
  }
}

void multiply_few_rows(const Gemm& problem, const GemmCpu& cpu, const Executor& executor) {
  // Whole cache lines are read at twice the rate of others.
  const bool is_ready = problem.dtype == DType::kFloat32 && problem.a.k_stride == 1 &&
                        problem.k == few_rows_size(problem.k) &&
                        problem.a.row_stride == problem.k &&
                        reinterpret_cast<std::uintptr_t>(problem.a.data) % 64 == 0;
  const auto* a = static_cast<const float*>(problem.a.data);
  Lines prepared;
  if (!is_ready) {
    prepared = take_lines(problem.m * few_rows_size(problem.k) * std::int64_t{sizeof(float)});
    auto* to = reinterpret_cast<float*>(prepared.get());
    cpu.prepare_few_rows(problem, to);
    a = to;
  }
  const std::int64_t rows = few_rows_task(problem.k * (problem.dtype == DType::kFloat32 ? 4 : 2));
  parallel_for(executor, ceil_div(problem.n, rows), [&](std::int64_t task, int) {
    cpu.few_rows(problem, a, run_of(problem.n, rows, task));
  });
}

// The tiled product, a slab at a time.
class TiledProduct {
 public:
  TiledProduct(const Gemm& problem, const GemmCpu& cpu, const Executor& executor)
      : problem_(problem),
        cpu_(cpu),
        executor_(executor),
        size_(problem.dtype == DType::kFloat64 ? 8 : 4),
        tiles_(gemm_tiles(problem.m, problem.n, problem.k, cpu.tile_rows,
                          size_ == 8 ? cpu.tile_columns_float64 : cpu.tile_columns_float32)),
        a_(take_lines(tiles_.slab_row_panels * tiles_.slab_k_blocks * tiles_.row_panel_size() *
                      size_)),
        b_(take_lines(tiles_.slab_column_panels * tiles_.slab_k_blocks *
                      tiles_.column_panel_size() * size_)) {
    if (is_bfloat16()) {
      sums_ = take_lines(tiles_.slab_row_panels * tiles_.tile_rows * sums_stride() * size_);
    }
  }

  void run() {
    for (std::int64_t row = 0; row < tiles_.row_panels; row += tiles_.slab_row_panels) {
      for (std::int64_t column = 0; column < tiles_.column_panels;
           column += tiles_.slab_column_panels) {
        for (std::int64_t block = 0; block < tiles_.k_blocks; block += tiles_.slab_k_blocks) {
          const GemmSlab slab = {
              {row, least(row + tiles_.slab_row_panels, tiles_.row_panels)},
              {column, least(column + tiles_.slab_column_panels, tiles_.column_panels)},
              {block, least(block + tiles_.slab_k_blocks, tiles_.k_blocks)}};
          pack(slab);
          multiply(slab);
          if (is_bfloat16() && slab.blocks.end == tiles_.k_blocks) {
            narrow(slab);
          }
        }
      }
    }
  }

 private:
  bool is_bfloat16() const { return problem_.dtype == DType::kBFloat16; }

  // bfloat16 is added up in float32 beside C.
  std::int64_t sums_stride() const { return tiles_.slab_column_panels * tiles_.tile_columns; }

  std::byte* c_of(const GemmSlab& slab) const {
    const std::int64_t at = tiles_.rows(slab.rows.begin).begin * problem_.c_stride +
                            tiles_.columns(slab.columns.begin).begin;
    return static_cast<std::byte*>(problem_.c) + at * (is_bfloat16() ? 2 : size_);
  }

  // What the last slab left is not packed again.
  void pack(const GemmSlab& slab) {
    const bool has_a = slab.blocks == packed_.blocks && slab.rows == packed_.rows;
    const bool has_b = slab.blocks == packed_.blocks && slab.columns == packed_.columns;
    const std::int64_t blocks = slab.blocks.size();
    const std::int64_t num_a = has_a ? 0 : slab.rows.size() * blocks;
    const std::int64_t num_b = has_b ? 0 : slab.columns.size() * blocks;
    packed_ = slab;
    parallel_for(executor_, num_a + num_b, [&](std::int64_t task, int) {
      if (task < num_a) {
        const auto [panel, block] = panel_and_block(problem_.a, task, num_a / blocks, blocks);
        const GemmRange rows = tiles_.rows(slab.rows.begin + panel);
        cpu_.pack({&problem_.a, problem_.dtype, rows.begin, rows.size(), problem_.m - rows.begin,
                   rows.size(), tiles_.terms(slab.blocks.begin + block),
                   a_.get() + (panel * blocks + block) * tiles_.row_panel_size() * size_});
      } else {
        const auto [panel, block] =
            panel_and_block(problem_.b, task - num_a, num_b / blocks, blocks);
        const GemmRange rows = tiles_.columns(slab.columns.begin + panel);
        cpu_.pack({&problem_.b, problem_.dtype, rows.begin, rows.size(), problem_.n - rows.begin,
                   tiles_.tile_columns, tiles_.terms(slab.blocks.begin + block),
                   b_.get() + (panel * blocks + block) * tiles_.column_panel_size() * size_});
      }
    });
  }

  // Where rows lie side by side, neighbouring panels read the same lines of memory: they come one
  // after the other, a block of terms at a time.
  static std::pair<std::int64_t, std::int64_t> panel_and_block(const GemmOperand& operand,
                                                               std::int64_t task,
                                                               std::int64_t panels,
                                                               std::int64_t blocks) {
    return operand.row_stride == 1 ? std::pair(task % panels, task / panels)
                                   : std::pair(task / blocks, task % blocks);
  }

  void multiply(const GemmSlab& slab) {
    const PackedSlab packed = {tiles_,
                               slab,
                               a_.get(),
                               b_.get(),
                               problem_.bias,
                               problem_.dtype,
                               is_bfloat16() ? sums_.get() : c_of(slab),
                               is_bfloat16() ? sums_stride() : problem_.c_stride};
    const GemmGrid grid = task_grid(slab);
    parallel_for(executor_, grid.num_tasks(), [&](std::int64_t task, int) {
      cpu_.multiply(packed, part_of(slab.rows, grid.row_parts, task / grid.column_parts),
                    part_of(slab.columns, grid.column_parts, task % grid.column_parts));
    });
  }

  void narrow(const GemmSlab& slab) {
    const std::int64_t first_row = tiles_.rows(slab.rows.begin).begin;
    const std::int64_t columns =
        tiles_.columns(slab.columns.end - 1).end - tiles_.columns(slab.columns.begin).begin;
    parallel_for(executor_, slab.rows.size(), [&](std::int64_t task, int) {
      const GemmRange rows = tiles_.rows(slab.rows.begin + task);
      for (std::int64_t row = rows.begin - first_row; row < rows.end - first_row; ++row) {
        cpu_.narrow(reinterpret_cast<const float*>(sums_.get()) + row * sums_stride(), columns,
                    reinterpret_cast<std::uint16_t*>(c_of(slab)) + row * problem_.c_stride);
      }
    });
  }

  const Gemm& problem_;
  const GemmCpu& cpu_;
  const Executor& executor_;
  std::int64_t size_;  // of a packed number, in bytes
  GemmTiles tiles_;
  Lines a_;
  Lines b_;
  Lines sums_;
  GemmSlab packed_{};
};

}  // namespace

void gemm(const Gemm& problem, const Executor& executor) {
  check(problem);
  require_cpu_dtype(problem.dtype, "gemm");
  if (problem.m == 0 || problem.n == 0) {
    return;
  }
  if (problem.k == 0) {
    fill_with_bias(problem);
    return;
  }
  const GemmCpu cpu = select_isa(generic::gemm_cpu, avx2::gemm_cpu, avx512::gemm_cpu)();
  const bool is_small = problem.m * problem.n * problem.k <= kSerialWork;
  const Executor& on = is_small ? serial_executor() : executor;
  if (problem.m <= kFewRows && problem.b.k_stride == 1 && problem.dtype != DType::kFloat64) {
    multiply_few_rows(problem, cpu, on);
  } else {
    TiledProduct(problem, cpu, on).run();
  }
}

}  // namespace paperlab::kernels
