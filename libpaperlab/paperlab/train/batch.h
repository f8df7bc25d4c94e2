#pragma once
/// \file
/// What a step of training reads.

#include <ATen/core/Tensor.h>

#include <utility>

namespace paperlab::train {

/// A global batch. Converts from a tensor, so that a function that returns tokens is one of
/// batches.
struct Batch {
  Batch() = default;
  Batch(at::Tensor given,  // NOLINT(google-explicit-constructor)
        at::Tensor its_labels = {}, at::Tensor mask = {}, at::Tensor types = {})
      : rows(std::move(given)),
        labels(std::move(its_labels)),
        attention_mask(std::move(mask)),
        token_type_ids(std::move(types)) {}

  at::Tensor rows{};  ///< Decoder: tokens [B, T + 1] int64. Encoder: tokens [B, T] int64, or pixels
                      ///< [B, C, H, W], floating.
  at::Tensor labels{};          ///< Encoder: [B] int64 in 0..num_labels-1. Decoder: not defined.
  at::Tensor attention_mask{};  ///< Encoder of tokens: [B, T], not zero where a token counts; not
                                ///< defined: all. Else not defined.
  at::Tensor token_type_ids{};  ///< Encoder of tokens: [B, T] int64 below num_token_types; not
                                ///< defined: zeros. Else not defined.
};

}  // namespace paperlab::train
