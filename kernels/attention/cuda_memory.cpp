// Shared memory of attention's largest blocks.
#include <algorithm>

#include "kernels/attention/cuda.h"
#include "kernels/attention/cuda_shapes.h"

namespace paperlab::kernels {
namespace {

constexpr bool is_short(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

template <class Memory>
void raise(std::int64_t& bytes) {
  bytes = std::max(bytes, static_cast<std::int64_t>(sizeof(Memory)));
}

template <int kWidth>  // 16 bits are 16 bits
void raise_to_forward(std::int64_t& bytes) {
  raise<ForwardMemory<TileShape<BFloat16, kWidth>>>(bytes);
  raise<ForwardMemory<DecodeShape<BFloat16, kWidth>>>(bytes);
}

}  // namespace

std::int64_t attention_cuda_shared_memory(DType dtype, std::int64_t head_dim) {
  std::int64_t bytes = 0;
  if (!is_short(dtype)) {
    with_plain_forward_shape(dtype, head_dim, [&](auto shape) {
      raise<PlainForwardMemory<typename decltype(shape)::Type>>(bytes);
    });
  } else if (padded_width(head_dim) == 64) {
    raise_to_forward<64>(bytes);
  } else if (padded_width(head_dim) == 128) {
    raise_to_forward<128>(bytes);
  } else {
    raise_to_forward<256>(bytes);
  }
  return bytes;
}

std::int64_t attention_backward_cuda_shared_memory(DType dtype, std::int64_t head_dim) {
  std::int64_t bytes = 0;
  if (is_short(dtype)) {
    with_backward_shapes<BFloat16>(
        head_dim, [&](auto shape) { raise<KeyMemory<typename decltype(shape)::Type>>(bytes); },
        [&](auto shape) { raise<QueryMemory<typename decltype(shape)::Type>>(bytes); });
  } else {
    with_plain_backward_shape(dtype, head_dim, [&](auto shape) {
      raise<PlainBackwardMemory<typename decltype(shape)::Type>>(bytes);
    });
  }
  return bytes;
}

}  // namespace paperlab::kernels
