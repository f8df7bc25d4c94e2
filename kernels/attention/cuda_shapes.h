#pragma once
// Which blocks serve a dtype and a head size: what is launched and what memory that takes follow
// from the same choice.

#include "kernels/attention/block_backward_query.h"
#include "kernels/attention/block_plain_backward.h"
#include "kernels/attention/cuda_launch.h"

namespace paperlab::kernels {

template <class S>
struct BlockShape {
  using Type = S;
};

// Tensor cores, E of 16 bits: calls keys(BlockShape) for each launch of key blocks, then
// queries(BlockShape).
template <class E, class Keys, class Queries>
void with_backward_shapes(std::int64_t head_dim, Keys keys, Queries queries) {
  switch (padded_width(head_dim)) {
    case 64:
      keys(BlockShape<BothShape<E, 64>>{});
      return queries(BlockShape<QueryTileShape<E, 64>>{});
    case 128:
      keys(BlockShape<BothShape<E, 128>>{});
      return queries(BlockShape<QueryTileShape<E, 128>>{});
    default:  // two gradients of 256 columns exceed the registers
      keys(BlockShape<KeyShape<E, 256, 32, false, true>>{});
      keys(BlockShape<KeyShape<E, 256, 32, true, false>>{});
      return queries(BlockShape<QueryTileShape<E, 256>>{});
  }
}

// float32 and float64: calls body(BlockShape).
template <class Body>
void with_plain_forward_shape(DType dtype, std::int64_t head_dim, Body body) {
  if (dtype == DType::kFloat64) {
    body(BlockShape<PlainDouble>{});
  } else if (head_dim <= 128) {
    body(BlockShape<PlainForward128>{});
  } else {
    body(BlockShape<PlainForward256>{});
  }
}

template <class Body>
void with_plain_backward_shape(DType dtype, std::int64_t head_dim, Body body) {
  if (dtype == DType::kFloat64) {
    body(BlockShape<PlainDouble>{});
  } else if (head_dim <= 128) {
    body(BlockShape<PlainBackward128>{});
  } else {
    body(BlockShape<PlainBackward256>{});
  }
}

}  // namespace paperlab::kernels
