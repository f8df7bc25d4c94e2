#pragma once
// Batches of sequences of different lengths: the decoder computes with padding on the left alone.

#include <ATen/core/Tensor.h>

#include "paperlab/nn/decoder.h"

namespace paperlab::nn {

// Refuses what is no [B, T] of ids below vocab_size, in the name of `function`. Ids are looked at
// if `checks_ids`, which waits for the tokens' device; those of tensors without memory cannot be.
void check_tokens(const char* function, const at::Tensor& tokens, std::int64_t vocab_size,
                  bool checks_ids = true);

struct Padding {
  at::Tensor tokens;     // [B, T], padding on the left
  at::Tensor key_start;  // [B] int64: how much; not defined: none
  at::Tensor inverse;    // [B, T]: where each original token went; not defined: it stayed
};

// Moves the tokens that the mask hides to the left. A mask without memory may hide any.
Padding left_padding(const at::Tensor& tokens, const at::Tensor& attention_mask);

// [B, T, E] in the original order.
at::Tensor unpad(const at::Tensor& state, const Padding& padding);

// Refuses what a cache cannot take.
void check_cache(const at::Tensor& tokens, const at::Tensor& attention_mask, const Cache& cache);

}  // namespace paperlab::nn
