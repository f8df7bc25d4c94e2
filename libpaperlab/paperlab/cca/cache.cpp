#include "paperlab/cca/cache.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <utility>

#include "paperlab/cca/inputs_internal.h"
#include "paperlab/cca/partition.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/attention.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/group_pool.h"

namespace paperlab::cca {
namespace {

constexpr std::int64_t kSpareRaw = 64;
constexpr std::int64_t kSpareCore = 32;

at::Tensor entries(const at::Tensor& x, std::int64_t first, std::int64_t count) {
  return x.narrow(2, first, count);
}

std::int64_t num_bytes_of(const at::Tensor& x) {
  return x.defined() ? static_cast<std::int64_t>(x.nbytes()) : 0;
}

void check_key_start(const char* function, const at::Tensor& key_start, const at::Tensor& query) {
  TORCH_CHECK_TYPE(key_start.scalar_type() == at::kLong, function,
                   ": key_start must be int64, got ", key_start.scalar_type());
  TORCH_CHECK_VALUE(key_start.dim() == 1 && key_start.size(0) == query.size(0), function,
                    ": key_start must be [", query.size(0), "], got ", key_start.sizes());
  const bool is_near = key_start.is_cpu() || key_start.device() == query.device();
  TORCH_CHECK_VALUE(is_near && key_start.layout() == at::kStrided, function,
                    ": key_start must be a strided tensor on the CPU or the device of q, got ",
                    key_start.device());
}

// Not negative, and none at all if no row has padding.
std::vector<std::int64_t> starts_of(const char* function, const at::Tensor& key_start) {
  const at::Tensor dense = key_start.cpu().contiguous();
  const auto* first = dense.const_data_ptr<std::int64_t>();
  std::vector<std::int64_t> starts(first, first + dense.numel());
  for (const std::int64_t start : starts) {
    TORCH_CHECK_VALUE(start >= 0, function, ": key_start must be >= 0, got ", start);
  }
  const bool is_padded = std::any_of(starts.begin(), starts.end(), [](auto x) { return x > 0; });
  return is_padded ? starts : std::vector<std::int64_t>{};
}

// Under autocast x in the dtype that the cache has, or will have: autocast's. float64 stays.
at::Tensor taken(const KvCache& cache, const at::Tensor& x) {
  const bool is_begun = cache.length() > 0;
  if (!is_autocast_on(x) || (is_begun && x.scalar_type() == cache.dtype())) {
    return x;
  }
  const at::Tensor low = lowered(x);
  const bool is_exact = low.scalar_type() == at::kDouble || !low.is_floating_point();
  return !is_begun || is_exact || cache.dtype() == at::kDouble ? low : low.to(cache.dtype());
}

}  // namespace

// One call.
struct KvCache::Chunk {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;

  std::int64_t size() const { return query.size(2); }
};

// Those that a call's rows need.
struct KvCache::RawTokens {
  Buffer buffer;
  bool is_for_call;  // memory that no cache keeps: it is as long as the call, or the caller's
};

KvCache::KvCache(const Options& options, bool is_revertible)
    : options_(options), is_revertible_(is_revertible) {
  validate("KVCache", options);
  require<ValueError>(options.boundary == Boundary::kExact, "KVCache", "boundary must be exact",
                      "another");
}

at::Tensor KvCache::prefill(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& key_start) {
  return append("KVCache.prefill", {taken(*this, query), taken(*this, key), taken(*this, value)},
                key_start);
}

at::Tensor KvCache::step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  const Chunk given = {taken(*this, query), taken(*this, key), taken(*this, value)};
  check_inputs("KVCache.step", given.query, given.key, given.value);
  TORCH_CHECK_VALUE(query.size(2) == 1, "KVCache.step: q must be [B, H, 1, D], got ",
                    query.sizes());
  return append("KVCache.step", given, {});
}

at::Tensor KvCache::append(const char* function, const Chunk& given, const at::Tensor& key_start) {
  check_inputs(function, given.query, given.key, given.value);
  TORCH_CHECK_VALUE(given.query.is_cpu() || given.query.is_cuda(), function,
                    ": q must be on the CPU or a CUDA device, got ", given.query.device());
  std::vector<std::int64_t> starts = new_starts(function, given.query, key_start);
  check_is_as_before(function, given, starts);
  if (given.size() == 0) {
    return at::empty_like(given.query, at::MemoryFormat::Contiguous).detach();
  }
  if (length_ == 0) {
    reset();
    starts_ = std::move(starts);
    key_start_ = starts_.empty()
                     ? at::Tensor()
                     : key_start.to(given.query.device(), at::kLong, false, /*copy=*/true);
    given_start_ = key_start;
  }
  const c10::InferenceMode no_inference_mode(false);  // whose tensors later calls couldn't write to
  const at::NoGradGuard no_grad;
  const ops::autocast::Off no_autocast;
  const Chunk chunk{given.query.detach(), given.key.detach(), given.value.detach()};
  const RawTokens raw = raw_with(chunk);
  const Buffer prefix = prefix_with(chunk, raw.buffer);
  at::Tensor out = attend(chunk, raw.buffer, prefix);
  keep_raw(chunk, raw);
  prefix_ = prefix;
  length_ += chunk.size();
  num_heads_ = chunk.query.size(1);
  return out;
}

// Of the rows of this call. The decoder gives each step the same tensor: reading it anew would wait
// for its device.
std::vector<std::int64_t> KvCache::new_starts(const char* function, const at::Tensor& query,
                                              const at::Tensor& key_start) const {
  if (!key_start.defined()) {
    return length_ == 0 ? std::vector<std::int64_t>{} : starts_;
  }
  check_key_start(function, key_start, query);
  const bool is_known = length_ > 0 && key_start.is_same(given_start_);
  return is_known ? starts_ : starts_of(function, key_start);
}

void KvCache::check_is_as_before(const char* function, const Chunk& chunk,
                                 const std::vector<std::int64_t>& starts) const {
  if (length_ == 0) {
    return;
  }
  const at::Tensor& held = raw_.key;
  TORCH_CHECK_VALUE(chunk.query.device() == held.device(), function,
                    ": q must be on the cache's device ", held.device(), ", got ",
                    chunk.query.device());
  TORCH_CHECK_TYPE(chunk.query.scalar_type() == held.scalar_type(), function,
                   ": q must be of the cache's dtype ", held.scalar_type(), ", got ",
                   chunk.query.scalar_type());
  const std::int64_t tokens = chunk.size();
  const std::vector<std::int64_t> query = {held.size(0), num_heads_, tokens, held.size(3)};
  TORCH_CHECK_VALUE(chunk.query.sizes() == at::IntArrayRef(query), function,
                    ": q must be of the cache's sizes ", at::IntArrayRef(query), ", got ",
                    chunk.query.sizes());
  const std::vector<std::int64_t> key = {held.size(0), held.size(1), tokens, held.size(3)};
  TORCH_CHECK_VALUE(chunk.key.sizes() == at::IntArrayRef(key), function,
                    ": k must be of the cache's sizes ", at::IntArrayRef(key), ", got ",
                    chunk.key.sizes());
  TORCH_CHECK_VALUE(starts == starts_, function,
                    ": key_start must be that of the first call, got another");
}

std::int64_t KvCache::start_of(std::int64_t row) const {
  return starts_.empty() ? 0 : starts_[static_cast<std::size_t>(row)];
}

std::int64_t KvCache::shortest_start() const {
  return starts_.empty() ? 0 : *std::min_element(starts_.begin(), starts_.end());
}

std::int64_t KvCache::needed_from(std::int64_t length) const {
  std::int64_t least = length;
  const std::int64_t rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(starts_.size()));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t start = start_of(row);
    if (length > start) {
      least = std::min(least, start + num_behind(length - start, options_));
    }
  }
  return least;
}

// Room for so many tokens; what a cache of few tokens takes grows with them.
std::int64_t KvCache::raw_capacity(std::int64_t count) const {
  const std::int64_t most = options_.keep_first + options_.window + options_.group_size + kSpareRaw;
  return std::min(most, std::max(kSpareRaw, 2 * count));
}

KvCache::Buffer KvCache::new_raw(const Buffer& from, std::int64_t first) const {
  const std::int64_t count = from.end() - first;
  std::vector<std::int64_t> sizes = from.key.sizes().vec();
  sizes[2] = raw_capacity(count);
  Buffer fresh{at::empty(sizes, from.key.options()), at::empty(sizes, from.key.options()), first,
               count};
  entries(fresh.key, 0, count).copy_(entries(from.key, first - from.first, count));
  entries(fresh.value, 0, count).copy_(entries(from.value, first - from.first, count));
  return fresh;
}

// The chunk's own included: behind raw_'s where they fit, else with those that are needed in new
// memory. What raw_ holds stays as it is, so that a call that fails changes nothing.
KvCache::RawTokens KvCache::raw_with(const Chunk& chunk) const {
  const std::int64_t size = chunk.size();
  const std::int64_t first = needed_from(length_);
  const std::int64_t kept = length_ - first;
  if (kept + size > raw_capacity(kept + size)) {
    if (kept == 0) {
      return {Buffer{chunk.key, chunk.value, length_, size}, true};
    }
    const std::int64_t offset = first - raw_.first;
    const at::Tensor key = at::cat({entries(raw_.key, offset, kept), chunk.key}, 2);
    const at::Tensor value = at::cat({entries(raw_.value, offset, kept), chunk.value}, 2);
    return {Buffer{key, value, first, kept + size}, true};
  }
  Buffer raw = raw_.count + size > raw_.capacity() ? with_room(chunk, first) : raw_;
  entries(raw.key, raw.count, size).copy_(chunk.key);
  entries(raw.value, raw.count, size).copy_(chunk.value);
  raw.count += size;
  return {raw, false};
}

// raw_'s tokens from `first` on in new memory that holds the chunk's besides.
KvCache::Buffer KvCache::with_room(const Chunk& chunk, std::int64_t first) const {
  const std::int64_t kept = length_ - first;
  std::vector<std::int64_t> sizes = chunk.key.sizes().vec();
  sizes[2] = std::max(raw_.capacity(), raw_capacity(kept + chunk.size()));
  Buffer raw{at::empty(sizes, chunk.key.options()), at::empty(sizes, chunk.key.options()), first,
             kept};
  if (kept > 0) {
    const std::int64_t offset = first - raw_.first;
    entries(raw.key, 0, kept).copy_(entries(raw_.key, offset, kept));
    entries(raw.value, 0, kept).copy_(entries(raw_.value, offset, kept));
  }
  return raw;
}

// All memory is taken before anything is changed.
void KvCache::keep_raw(const Chunk& chunk, const RawTokens& raw) {
  if (!raw.is_for_call) {
    before_ = {};
    raw_ = raw.buffer;
    return;
  }
  Buffer fresh = new_raw(raw.buffer, needed_from(length_ + chunk.size()));
  before_ = is_revertible_ ? raw_ : Buffer();
  raw_ = std::move(fresh);
}

// Entries of new memory for `core` groups that are not needed yet. A call of many tokens reads all
// entries more than once: copying them each time does not count.
std::int64_t KvCache::spare_core(const Chunk& chunk, std::int64_t core) const {
  const bool is_large = chunk.size() / options_.group_size >= kSpareCore;
  const std::int64_t growth = is_large ? 0 : core / 2;
  return growth + std::max<std::int64_t>(0, kSpareCore - options_.keep_first);
}

// prefix_ with the groups that the chunk completes.
KvCache::Buffer KvCache::prefix_with(const Chunk& chunk, const Buffer& raw) const {
  // As many as the operator asks for without looking at starts.
  const std::int64_t core = num_groups(raw.end(), options_);
  Buffer prefix = prefix_;
  if (core == 0) {
    return prefix;
  }
  const std::int64_t kept = options_.keep_first;
  const bool is_per_query =
      options_.pooling == Pooling::kAttention && options_.weights_per == WeightsPer::kQueryHead;
  if (kept + core > prefix.capacity()) {
    std::vector<std::int64_t> sizes = chunk.key.sizes().vec();
    sizes[1] = is_per_query ? chunk.query.size(1) : sizes[1];
    sizes[2] = kept + core + spare_core(chunk, core);
    prefix.key = at::zeros(sizes, chunk.key.options());
    prefix.value = at::zeros(sizes, chunk.key.options());
    if (prefix_.count > 0) {
      entries(prefix.key, 0, prefix_.count).copy_(entries(prefix_.key, 0, prefix_.count));
      entries(prefix.value, 0, prefix_.count).copy_(entries(prefix_.value, 0, prefix_.count));
    }
  }
  prefix.count = kept + core;
  const std::int64_t rows = chunk.query.size(0);
  const std::int64_t step = starts_.empty() ? rows : 1;
  for (std::int64_t row = 0; row < rows; row += step) {
    pool_rows(chunk, raw, prefix, row, step);
  }
  return prefix;
}

// Of rows that start at the same token.
void KvCache::pool_rows(const Chunk& chunk, const Buffer& raw, const Buffer& prefix,
                        std::int64_t row, std::int64_t count) const {
  const std::int64_t kept = options_.keep_first;
  const std::int64_t begin = start_of(row) + kept;
  const std::int64_t old_groups = num_groups(length_ - start_of(row), options_);
  const std::int64_t groups = num_groups(raw.end() - start_of(row), options_) - old_groups;
  if (groups == 0) {
    return;
  }
  const auto rows_of = [row, count](const at::Tensor& x) { return x.narrow(0, row, count); };
  if (old_groups == 0 && kept > 0) {
    for (const auto& [to, from] : {std::pair(prefix.key, raw.key), {prefix.value, raw.value}}) {
      const at::Tensor tokens = entries(rows_of(from), start_of(row) - raw.first, kept);
      entries(rows_of(to), 0, kept).copy_(repeated_heads(tokens, to.size(1)));
    }
  }
  const std::int64_t first = begin + old_groups * options_.group_size;
  const std::int64_t size = raw.end() - first;
  const std::int64_t queries = std::min(chunk.size(), size);
  ops::GroupPoolOptions pooling;
  pooling.group = options_.group_size;
  pooling.kind = kind_of(options_.pooling);
  pooling.per_kv_head = options_.weights_per == WeightsPer::kKvHead;
  ops::group_pool_into(entries(rows_of(chunk.query), chunk.size() - queries, queries),
                       entries(rows_of(raw.key), first - raw.first, size),
                       entries(rows_of(raw.value), first - raw.first, size), pooling,
                       entries(rows_of(prefix.key), kept + old_groups, groups),
                       entries(rows_of(prefix.value), kept + old_groups, groups));
}

at::Tensor KvCache::attend(const Chunk& chunk, const Buffer& raw, const Buffer& prefix) const {
  ops::AttentionOptions options;
  options.num_past = raw.first;
  if (key_start_.defined()) {
    options.key_start = key_start_.clamp_max(raw.end());
  }
  if (prefix.count > 0) {
    options.window = options_.window;
    options.prefix_group = options_.group_size;
    options.prefix_kept = options_.keep_first;
    options.prefix_key = entries(prefix.key, 0, prefix.count);
    options.prefix_value = entries(prefix.value, 0, prefix.count);
  }
  return ops::attention(chunk.query, entries(raw.key, 0, raw.count),
                        entries(raw.value, 0, raw.count), options)
      .out;
}

std::int64_t KvCache::stored_vectors() const {
  const std::int64_t length = std::max<std::int64_t>(length_ - shortest_start(), 0);
  return num_groups(length, options_) + length -
         options_.group_size * num_visible(length, options_);
}

std::int64_t KvCache::num_bytes() const {
  std::int64_t total = 0;
  for (const Buffer* buffer : {&raw_, &before_, &prefix_}) {
    total += num_bytes_of(buffer->key) + num_bytes_of(buffer->value);
  }
  return total;
}

void KvCache::reset() {
  raw_ = {};
  before_ = {};
  prefix_ = {};
  starts_.clear();
  key_start_.reset();
  given_start_.reset();
  length_ = 0;
}

void KvCache::truncate(std::int64_t length) {
  require<ValueError>(length >= 0 && length <= length_, "KVCache.truncate",
                      "length must be in 0.." + std::to_string(length_), std::to_string(length));
  if (length == length_) {
    return;
  }
  const std::int64_t first = needed_from(length);
  const bool is_in_raw = raw_.first <= first || first == length;
  const bool is_in_before =
      before_.key.defined() && before_.first <= first && length <= before_.end();
  require<ValueError>(is_in_raw || is_in_before, "KVCache.truncate",
                      "length must need no raw token before " + std::to_string(raw_.first),
                      std::to_string(length));
  if (!is_in_raw) {
    raw_ = before_;
  }
  before_ = {};
  raw_.first = std::min(raw_.first, length);
  raw_.count = length - raw_.first;
  const std::int64_t core = num_groups(length, options_);
  prefix_.count = core == 0 ? 0 : options_.keep_first + core;
  length_ = length;
}

}  // namespace paperlab::cca
