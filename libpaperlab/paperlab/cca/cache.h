#pragma once
/// \file
/// The streaming cache of core-context attention: core tokens and the last raw tokens, nothing
/// else. Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465); pooling a group as its last token
/// comes, whose query is the evaluator, so that no query is kept, is ours.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "paperlab/cca/options.h"
#include "paperlab/core/export.h"

namespace paperlab::cca {

/// Attends to tokens as they come, in calls of any length; each row's result is that of attention()
/// over all tokens so far. No gradients. For one caller at a time.
///
/// Memory for each batch row and channel, keys and values each, after L tokens: H (kKvHead: G)
/// heads hold at most 2 floor((L - n) / g) + 64 entries (n above 64: n more), G heads at most
/// s + g + 64 (until the first core token is seen, n more). After a call of more tokens than that,
/// a cache that is revertible holds the raw tokens from before it too.
class PAPERLAB_API KvCache {
 public:
  /// \param is_revertible  lets truncate() undo the last call, however long it was.
  /// \throws ValueError  "KVCache: ..." if an option is not as it must be, or boundary is not
  ///                     kExact: the others look ahead or count tokens twice.
  explicit KvCache(const Options& options = {}, bool is_revertible = false);

  /// Appends t >= 0 tokens and attends. The first call with tokens fixes B, H, G, D, the dtype and
  /// the device.
  ///
  /// \param query      [B, H, t, D], float32, float64 or bfloat16 (CUDA: float16 too), any strides,
  ///                   rotated.
  /// \param key        [B, G, t, D], H % G == 0, dtype of query, rotated.
  /// \param value      [B, G, t, D], likewise.
  /// \param key_start  [B] int64, >= 0, on the CPU or query's device: earlier tokens of a row are
  ///                   padding, see nothing and get 0. Absent: that of the call before, at first 0.
  ///                   May be another only in the first call. The tensor of the call before is
  ///                   taken to hold the same, without a look at it.
  /// \return           [B, H, t, D], new.
  /// \throws c10::ValueError, c10::TypeError  "KVCache.prefill: ..." if an argument is not as above
  ///                                          or not as in the first call; nothing has changed
  ///                                          then.
  at::Tensor prefill(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& key_start = {});

  /// The same for exactly one token; "KVCache.step: ...".
  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

  const Options& options() const { return options_; }
  std::int64_t length() const { return length_; }                  ///< L, tokens so far.
  at::ScalarType dtype() const { return raw_.key.scalar_type(); }  ///< Where length() > 0.

  /// Core and raw vectors that a next token may need: floor((L - n) / g) + L - g j(L),
  /// of the row with the least padding.
  std::int64_t stored_vectors() const;

  std::int64_t num_bytes() const;  ///< Allocated, for keys and values.

  void reset();  ///< As new: gives all memory back.

  /// Forgets tokens `length` and later. Always possible where `length` is that before the last call
  /// and that call was of one token (or the cache is revertible).
  /// \throws ValueError  if length is outside 0..length(), or needs raw tokens that are no longer
  ///                     there; nothing has changed then.
  void truncate(std::int64_t length);

 private:
  // Keys and values side by side: entries 0..count-1 of [B, heads, capacity, D].
  struct Buffer {
    at::Tensor key;
    at::Tensor value;
    std::int64_t first = 0;  // the token of entry 0
    std::int64_t count = 0;

    std::int64_t capacity() const { return key.defined() ? key.size(2) : 0; }
    std::int64_t end() const { return first + count; }
  };
  struct Chunk;
  struct RawTokens;

  at::Tensor append(const char* function, const Chunk& given, const at::Tensor& key_start);
  std::vector<std::int64_t> new_starts(const char* function, const at::Tensor& query,
                                       const at::Tensor& key_start) const;
  void check_is_as_before(const char* function, const Chunk& chunk,
                          const std::vector<std::int64_t>& starts) const;
  std::int64_t start_of(std::int64_t row) const;
  std::int64_t shortest_start() const;
  std::int64_t needed_from(std::int64_t length) const;  // the first raw token
  std::int64_t raw_capacity(std::int64_t count) const;
  Buffer new_raw(const Buffer& from, std::int64_t first) const;
  RawTokens raw_with(const Chunk& chunk) const;
  Buffer with_room(const Chunk& chunk, std::int64_t first) const;
  void keep_raw(const Chunk& chunk, const RawTokens& raw);
  Buffer prefix_with(const Chunk& chunk, const Buffer& raw) const;
  std::int64_t spare_core(const Chunk& chunk, std::int64_t core) const;
  void pool_rows(const Chunk& chunk, const Buffer& raw, const Buffer& prefix, std::int64_t row,
                 std::int64_t count) const;
  at::Tensor attend(const Chunk& chunk, const Buffer& raw, const Buffer& prefix) const;

  Options options_;
  bool is_revertible_;
  std::int64_t length_ = 0;
  std::int64_t num_heads_ = 0;
  std::vector<std::int64_t> starts_;  // of each row; empty: 0
  at::Tensor key_start_;              // the same for the kernel, or not defined
  at::Tensor given_start_;            // the tensor that they were read from, or not defined
  Buffer raw_;
  Buffer before_;  // revertible: raw_ before the last call, where it is not a part of raw_
  Buffer prefix_;  // n kept tokens, then core tokens
};

}  // namespace paperlab::cca
