#pragma once
// Which tokens a block of rows sees in vertical-slash attention.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace paperlab::cca::vertical_slash {

constexpr std::int64_t kBlock = 64;             // rows that share their tokens
constexpr std::int64_t kLastQueries = 64;       // that the choice looks at
constexpr std::int64_t kForcedColumns = 30;     // the first
constexpr std::int64_t kForcedDiagonals = 100;  // the nearest: a block's own tokens are among them

// Of each head, ascending, on the CPU.
struct Choice {
  at::Tensor columns;    // [B, H, min(T, max(vertical, 30))] int64
  at::Tensor diagonals;  // [B, H, min(T, max(slash, 100))] int64
};

// query [B, H, T, D], key [B, G, T, D], T >= 1, on any device, which is waited for.
Choice choose(const at::Tensor& query, const at::Tensor& key, std::int64_t vertical,
              std::int64_t slash);

// The tokens before a block that its rows see, for one head.
class PastTokens {
 public:
  // Arrays as in Choice, for a sequence of `length` tokens.
  PastTokens(const at::Tensor& columns, const at::Tensor& diagonals, std::int64_t length);

  // Ascending, of the block that begins at row `begin`.
  std::vector<std::int64_t> of_block(std::int64_t begin) const;

 private:
  std::vector<char> is_column_;
  std::vector<char> is_near_;  // [e], e >= 1: a diagonal of e..e + 63 is chosen
};

// A block of rows of some of the B H heads, and the tokens that each head's rows see, its own among
// them, side by side at the end.
struct Block {
  std::int64_t begin = 0;  // rows begin..begin + size - 1
  std::int64_t size = 0;
  std::int64_t width = 0;  // tokens
  at::Tensor start;        // [n] int64: earlier tokens are padding
  at::Tensor tokens;       // [n, width] int64
};

// Of heads first..first + count - 1.
Block block_of(const std::vector<PastTokens>& past, std::int64_t first, std::int64_t count,
               std::int64_t begin, std::int64_t length);

struct Memory {
  at::Tensor key;
  at::Tensor value;
};

// What the block's heads see of `from` [B, G, T, D], contiguous: [n, 1, width, D], a part of
// `memory` [n, 1, room, D]. Padding stays as it is there.
Memory gathered(const Memory& from, const Block& block, std::int64_t first, std::int64_t heads,
                const Memory& memory);

// Adds gradients [n, 1, width, D] to the rows of total [B, G, T, D], float32 or float64, from which
// they were gathered; heads of a key head one after the other.
void scatter_add(const at::Tensor& gradients, const Block& block, std::int64_t first,
                 std::int64_t heads, const at::Tensor& total);

// The same on any device: in memory of its own, and into total [B G T + 1, D], whose last row gets
// what is of no token; `keys` are the sizes [B, G, T, D].
Memory gathered_torch(const Memory& from, const Block& block, std::int64_t first,
                      std::int64_t heads);
void scatter_add_torch(const at::Tensor& gradients, const Block& block, std::int64_t first,
                       std::int64_t heads, at::IntArrayRef keys, const at::Tensor& total);

}  // namespace paperlab::cca::vertical_slash
