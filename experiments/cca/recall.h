#pragma once
// The task of typed needles: eight tokens, each of a type and a value, lie somewhere in the text;
// at the end each type is asked for once, and the answer is its value.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace paperlab::experiments::cca {

// 0 begins the text; 1..16 are fillers; 17 + 8 type + value is a needle; 81 + type asks for it.
constexpr std::int64_t kNeedleTypes = 8;
constexpr std::int64_t kNeedleValues = 8;
constexpr std::int64_t kNeedleVocab = 89;
constexpr std::int64_t kNeedleSlot = 4;  // tokens, one of which may be a needle

struct NeedleBatch {
  at::Tensor tokens;  // [B, length] int64; the last 8 ask
  at::Tensor values;  // [B, 8] int64, the answers
  at::Tensor slots;   // [B, 8] int64, where the needles lie
};

// Slots of tokens that needles may lie in: the first begins at token 1, 23 fillers follow the last.
constexpr std::int64_t num_needle_slots(std::int64_t length) { return (length - 32) / kNeedleSlot; }

// Texts number begin, begin + 1, ... of a stream: a function of seed, stream and number. Each
// needle lies in a slot of its own, types and slots in random order.
// \param length  64 or more, a multiple of 4.
NeedleBatch needle_batch(std::uint64_t seed, std::uint64_t stream, std::int64_t begin,
                         std::int64_t count, std::int64_t length);

}  // namespace paperlab::experiments::cca
