#pragma once
// How the threads of a block share rows of contiguous elements: pure arithmetic of shapes.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

constexpr int kRowThreads = 256;  // of a block, unless one row has more

// `lanes()` neighbours have a row, and a block has `rows` rows at once. Of each chunk of a row a
// lane takes the packs lane, lane + lanes(), ... so that neighbours read side by side.
struct RowTeam {
  int shift = 0;  // lanes are a power of two
  int rows = 1;
  int packs = 1;  // of a lane in a chunk

  PAPERLAB_HD constexpr int lanes() const { return 1 << shift; }
  PAPERLAB_HD constexpr int threads() const { return lanes() * rows; }
  PAPERLAB_HD constexpr int lane(int thread) const { return thread & (lanes() - 1); }
  PAPERLAB_HD constexpr int row(int thread) const { return thread >> shift; }

  PAPERLAB_HD constexpr std::int64_t packs_of_chunk() const {
    return std::int64_t{packs} * lanes();
  }
  PAPERLAB_HD constexpr std::int64_t num_chunks(std::int64_t packs_of_row) const {
    return (packs_of_row + packs_of_chunk() - 1) / packs_of_chunk();
  }
  // Pack k < packs of a thread in a chunk, as its number in the row.
  PAPERLAB_HD constexpr std::int64_t pack(int thread, std::int64_t chunk, int k) const {
    return chunk * packs_of_chunk() + lane(thread) + std::int64_t{k} * lanes();
  }
  // Blocks' turns that all rows take.
  PAPERLAB_HD constexpr std::int64_t num_turns(std::int64_t num_rows) const {
    return (num_rows + rows - 1) / rows;
  }
};

// The fewest lanes whose `packs` each hold a row of `packs_of_row`, at most `most_lanes`, a power
// of two from a warp on.
PAPERLAB_HD constexpr RowTeam row_team(std::int64_t packs_of_row, int packs, int most_lanes) {
  int shift = 0;
  while ((2 << shift) <= most_lanes && (std::int64_t{packs} << shift) < packs_of_row) {
    ++shift;
  }
  const int rows = kRowThreads >> shift;
  return {shift, rows < 1 ? 1 : rows, packs};
}

}  // namespace paperlab::kernels
