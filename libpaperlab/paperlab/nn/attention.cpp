#include "paperlab/nn/attention.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <typeinfo>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/ops/attention.h"
#include "paperlab/ops/rope.h"

namespace paperlab::nn {
namespace {

// Rotated keys and values of all tokens, [B, G, max_length, D].
class FullCache final : public LayerCache {
 public:
  explicit FullCache(const CacheShape& shape)
      : key_(at::empty({shape.batch_size, shape.num_kv_heads, shape.max_length, shape.head_dim},
                       shape.options)),
        value_(at::empty(key_.sizes(), shape.options)) {}

  // Puts keys and values [B, G, T, D] behind the first num_past; returns all of them.
  std::pair<at::Tensor, at::Tensor> append(std::int64_t num_past, const at::Tensor& key,
                                           const at::Tensor& value) {
    const std::int64_t length = key.size(2);
    // Autocast makes keys in its own dtype; the cache keeps the model's.
    const bool is_dtype = key.scalar_type() == key_.scalar_type() ||
                          at::autocast::is_autocast_enabled(key.device().type());
    const bool is_alike = key.size(0) == key_.size(0) && key.size(1) == key_.size(1) &&
                          key.size(3) == key_.size(3) && is_dtype && key.device() == key_.device();
    require<ValueError>(
        is_alike, "nn::FullAttention",
        "cache must be of the model's batch size, key heads, head_dim, dtype and device",
        "another model's");
    key_.narrow(2, num_past, length).copy_(key);
    value_.narrow(2, num_past, length).copy_(value);
    return {key_.narrow(2, 0, num_past + length), value_.narrow(2, 0, num_past + length)};
  }

  std::int64_t num_bytes() const override {
    return static_cast<std::int64_t>(key_.nbytes() + value_.nbytes());
  }

 private:
  at::Tensor key_;
  at::Tensor value_;
};

}  // namespace

at::Tensor rotated(const at::Tensor& x, const AttentionInput& input) {
  return input.cos.defined() ? ops::rope(x, input.cos, input.sin) : x;
}

at::Tensor FullAttention::forward(const AttentionInput& input, LayerCache* cache) const {
  const at::Tensor query = rotated(input.query, input).transpose(1, 2);
  at::Tensor key = rotated(input.key, input).transpose(1, 2);
  at::Tensor value = input.value.transpose(1, 2);
  if (cache != nullptr) {
    auto* full = dynamic_cast<FullCache*>(cache);
    require<ValueError>(full != nullptr, "nn::FullAttention",
                        "cache must be one that full attention made", "another");
    std::tie(key, value) = full->append(input.num_past, key, value);
  }
  ops::AttentionOptions options;
  if (input.window > 0) {
    options.window = input.window;
  }
  options.key_start = input.key_start;
  return ops::attention(query, key, value, options).out.transpose(1, 2);
}

// LibTorch's own error would name neither the function nor its arguments.
std::unique_ptr<LayerCache> FullAttention::new_cache(const CacheShape& shape) const {
  constexpr double kAddresses = 0x1p47;  // bytes that a process can have
  const double bytes = static_cast<double>(shape.batch_size) *
                       static_cast<double>(shape.num_kv_heads) *
                       static_cast<double>(shape.max_length) * static_cast<double>(shape.head_dim) *
                       static_cast<double>(shape.options.dtype().itemsize());
  const auto require_memory = [&](bool fits) {
    require<ValueError>(fits, "new_cache",
                        "batch_size and max_length must be such that the keys fit into memory",
                        c10::str(shape.batch_size, " and ", shape.max_length, ": ", bytes,
                                 " bytes a layer, and as many for the values"));
  };
  require_memory(bytes < kAddresses);
  try {
    return std::make_unique<FullCache>(shape);
  } catch (const c10::Error& error) {
    // The CPU's allocator throws no error of its own kind; those of a device tell what it lacks.
    require_memory(typeid(error) != typeid(c10::Error) || !shape.options.device().is_cpu());
    throw;
  }
}

}  // namespace paperlab::nn
