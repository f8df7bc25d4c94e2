#pragma once
// Rows of contiguous elements as the packs of a block's threads.

#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/rows.h"

namespace paperlab::kernels {

// How a launch reads rows of one width.
struct RowPlan {
  RowTeam team;
  std::int64_t num_chunks = 0;
  bool is_whole = false;  // rows are aligned packs (has_whole_packs)

  PAPERLAB_HD constexpr std::int64_t row(std::int64_t turn, int thread) const {
    return turn * team.rows + team.row(thread);
  }
};

// Host. `packs` of each tensor in a thread's registers, at most `most_lanes` threads a row.
template <class T>
RowPlan row_plan(std::int64_t width, int packs, int most_lanes, bool is_whole) {
  const RowTeam team = row_team(num_packs<T>(width), packs, most_lanes);
  return {team, team.num_chunks(num_packs<T>(width)), is_whole};
}

// Where a row begins, in elements, and how many it has.
struct RowSpan {
  std::int64_t start;
  std::int64_t width;
};

// A row that does not exist has no elements: nothing is read or written.
PAPERLAB_HD constexpr RowSpan row_span(std::int64_t row, std::int64_t num_rows, std::int64_t stride,
                                       std::int64_t width) {
  return {row * stride, row < num_rows ? width : 0};
}

// A thread's packs of a chunk; zeros behind the row's end.
template <class T, int kPacks>
PAPERLAB_HD void load_packs(const void* from, const RowSpan& row, const RowPlan& plan, int thread,
                            std::int64_t chunk, Pack (&to)[kPacks]) {
  PAPERLAB_UNROLL
  for (int k = 0; k < kPacks; ++k) {
    to[k] = load_of_row(static_cast<const T*>(from) + row.start,
                        plan.team.pack(thread, chunk, k) * kPackSize<T>, row.width, plan.is_whole);
  }
}

// Pack k of them.
template <class T>
PAPERLAB_HD void store_pack_of(void* to, const RowSpan& row, const RowPlan& plan, int thread,
                               std::int64_t chunk, int k, const Pack& pack) {
  store_of_row(static_cast<T*>(to) + row.start, plan.team.pack(thread, chunk, k) * kPackSize<T>,
               row.width, plan.is_whole, pack);
}

}  // namespace paperlab::kernels
