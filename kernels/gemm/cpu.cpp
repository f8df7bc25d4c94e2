// Compiled once for each instruction set. Tiles of packed panels, and few rows.
#include "kernels/gemm/cpu.h"

#include "kernels/gemm/cpu_few.h"
#include "kernels/gemm/cpu_pack.h"
#include "kernels/gemm/cpu_tile.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

void multiply(const PackedSlab& slab, GemmRange rows, GemmRange columns) {
  if (slab.dtype == DType::kFloat64) {
    multiply_panels<double>(slab, rows, columns);
  } else {
    multiply_panels<float>(slab, rows, columns);
  }
}

void narrow(const float* from, std::int64_t count, std::uint16_t* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(to + i, lanes, load_row(from + i, lanes));
  });
}

}  // namespace

GemmCpu gemm_cpu() {
  return {kTileRows, kTileColumns<float>, kTileColumns<double>, pack, multiply, narrow,
          few_rows,  prepare_few_rows};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
