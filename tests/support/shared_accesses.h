#pragma once
// What the warps of a group did with shared memory since the group's last barrier, by chunks of 16
// bytes. Where a barrier is missing a check throws std::logic_error, in whatever order an emulation
// runs the warps.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/common/cuda/team.h"

namespace paperlab::test {

class SharedAccesses {
 public:
  explicit SharedAccesses(std::size_t bytes) : chunks_(bytes / kBytes + 1) {}

  // shows_writes: also to products.
  void barrier(bool shows_writes) {
    shown_ = shows_writes ? now_ : shown_;
    ++now_;
  }
  void write(std::uint32_t place, int thread) {
    Chunk& chunk = chunks_.at(place / kBytes);
    check(chunk.read < now_, "other warps' products may still read what a warp writes");
    chunk.written = now_;
    chunk.writer = thread / kernels::kWarp;
  }
  void read(std::uint32_t place, int thread) const {
    const Chunk& chunk = chunks_.at(place / kBytes);
    check(chunk.written < now_ || chunk.writer == thread / kernels::kWarp,
          "a warp reads what another one wrote, and no barrier is between");
  }
  // By products, which read until they are done.
  void begin_product(std::uint32_t place) {
    Chunk& chunk = chunks_.at(place / kBytes);
    check(chunk.written <= shown_, "a product reads what was not shown to it");
    chunk.read = kUnderWay;
  }
  void end_product(std::uint32_t place) { chunks_.at(place / kBytes).read = now_; }

 private:
  static constexpr std::size_t kBytes = 16;
  static constexpr int kUnderWay = std::numeric_limits<int>::max();
  struct Chunk {
    int written = 0;
    int writer = 0;
    int read = 0;
  };

  static void check(bool is_ordered, const char* fault) {
    if (!is_ordered) {
      throw std::logic_error(fault);
    }
  }

  std::vector<Chunk> chunks_;
  int now_ = 1;  // barriers so far, and one
  int shown_ = 0;
};

}  // namespace paperlab::test
