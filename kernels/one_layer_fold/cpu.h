#pragma once
// What cpu.cpp exports once per instruction set.

#include "kernels/common/one_layer.h"
#include "kernels/one_layer_fold/tile.h"

namespace paperlab::kernels {

struct FoldCpu {
  // See query_table.h.
  double (*query_table)(const double* w, const double* u, int n, int unused, double scale,
                        double* e, double* eu);
  // Writes the marginals [2 L] of the task's strings. `scratch` holds 4 * 2^kMaxColumnBits doubles.
  void (*task)(const AffineGroup& group, RowRange rows, QueryTable table, double* scratch,
               Marginal* out);
  // Adds the task's strings to `out`.
  void (*evaluate)(const AffineGroup& group, RowRange rows, QueryTable table, double* scratch,
                   OneLayerEvaluation& out);
};

namespace generic {
FoldCpu fold_cpu();
}
namespace avx2 {
FoldCpu fold_cpu();
}
namespace avx512 {
FoldCpu fold_cpu();
}

}  // namespace paperlab::kernels
