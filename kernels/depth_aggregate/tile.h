#pragma once
// How tokens and columns are cut: functions of shapes alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

struct TokenRange {
  std::int64_t begin;
  std::int64_t end;
  PAPERLAB_HD constexpr std::int64_t size() const { return end - begin; }
};

PAPERLAB_HD constexpr std::int64_t num_blocks(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}
// Block `index` of blocks of `size` of 0..count-1; the last may be short.
PAPERLAB_HD constexpr TokenRange block_at(std::int64_t count, std::int64_t size,
                                          std::int64_t index) {
  const std::int64_t end = (index + 1) * size;
  return {index * size, end < count ? end : count};
}

// Numbers of a source that are worked on at a time, columns of a token or of a few narrow ones,
// while those that come next are fetched: runs as long as the first-level cache allows. Forward the
// sums of four ways are beside them, 8 KiB, and runs of the sources of a group and of the next
// group, 2 KiB each; backward four streams' gradients, 16 KiB, and runs of one source, of its
// gradient and of the next ones, 4 KiB each.
constexpr std::int64_t kSumRun = 512;
constexpr std::int64_t kGradientRun = 1024;

// Most tokens of a run.
constexpr std::int64_t kRunTokens = 8;

// Ways whose sums are made together.
constexpr std::int64_t kMostWays = 4;

// Tokens of a task: some tens of microseconds of work.
PAPERLAB_HD constexpr std::int64_t tokens_of_task(std::int64_t width) {
  const std::int64_t tokens = 16384 / width;
  return tokens < 1 ? 1 : tokens < 1024 ? tokens : 1024;
}

// The same where weights are generated: more of them, because their matrices are read for each
// task, but so that their states stay in the second-level cache; a multiple of 6, 8 and 12, the
// heights of a product's tile.
PAPERLAB_HD constexpr std::int64_t tokens_of_generator(std::int64_t width) {
  return width <= 1024 ? 96 : width <= 2048 ? 48 : 24;
}

// Tokens of a step of the backward pass: their states, 4 MiB in float32, stay in the last-level
// cache from one product to the next.
PAPERLAB_HD constexpr std::int64_t tokens_of_pass(std::int64_t width) {
  const std::int64_t tokens = (std::int64_t{1} << 20) / width;
  return tokens < 64 ? 64 : tokens < 8192 ? tokens : 8192;
}

// Streams larger than this in all are stored past the caches: otherwise they would take the place
// of the states, which the next block reads again.
PAPERLAB_HD constexpr bool is_stored_past_caches(std::int64_t bytes) {
  return bytes > (std::int64_t{1} << 22);
}

// A row of the generator's matrices in memory, in numbers: whole vectors of every instruction set.
PAPERLAB_HD constexpr std::int64_t padded(std::int64_t count) { return num_blocks(count, 16) * 16; }

}  // namespace paperlab::kernels
