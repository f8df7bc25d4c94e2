#pragma once
// What cpu.cpp exports once per instruction set.

#include <cstdint>

#include "kernels/common/one_layer.h"

namespace paperlab::kernels {

// Blocks of eight strings; see PackedStrings.
struct StringBlocks {
  int length;
  int query;
  double weight;
  std::int64_t num_blocks;
  int last_count;  // strings in the last block, 1..8
  const std::uint8_t* tokens;
  const std::uint8_t* negative;
};

struct LoopCpu {
  // See query_table.h.
  double (*query_table)(const double* w, const double* u, int n, int unused, double scale,
                        double* e, double* eu);
  // Writes the marginals [2 length]. `scratch` holds 32 * (length - 1) doubles.
  void (*task)(const StringBlocks& blocks, QueryTable table, double* scratch, Marginal* out);
  // Adds the strings to `out`.
  void (*evaluate)(const StringBlocks& blocks, QueryTable table, OneLayerEvaluation& out);
};

namespace generic {
LoopCpu loop_cpu();
}
namespace avx2 {
LoopCpu loop_cpu();
}
namespace avx512 {
LoopCpu loop_cpu();
}

}  // namespace paperlab::kernels
