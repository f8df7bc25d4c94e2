#include <ATen/ops/empty.h>

#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "experiments/cca/recall.h"
#include "paperlab/core/rng.h"

namespace paperlab::experiments::cca {
namespace {

constexpr std::int64_t kFillers = 16;
constexpr std::int64_t kFirstNeedle = 1 + kFillers;
constexpr std::int64_t kFirstAsk = kFirstNeedle + kNeedleTypes * kNeedleValues;

// The random numbers of one text.
class Draw {
 public:
  Draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t text)
      : seed_(seed), stream_(stream), next_(text << 16U) {}

  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(philox_uniform(seed_, stream_, next_++) *
                                     static_cast<double>(count));
  }

  // 0..count-1 in random order.
  std::vector<std::int64_t> order(std::int64_t count) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(count));
    std::iota(values.begin(), values.end(), 0);
    for (std::int64_t i = count - 1; i > 0; --i) {
      std::swap(values[static_cast<std::size_t>(i)],
                values[static_cast<std::size_t>(below(i + 1))]);
    }
    return values;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t next_;
};

void write_text(Draw draw, std::int64_t length, std::int64_t* tokens, std::int64_t* values,
                std::int64_t* slots) {
  tokens[0] = 0;
  for (std::int64_t i = 1; i < length; ++i) {
    tokens[i] = 1 + draw.below(kFillers);
  }
  std::array<std::int64_t, kNeedleTypes> value_of{};
  std::array<std::int64_t, kNeedleTypes> slot_of{};
  const std::vector<std::int64_t> places = draw.order(num_needle_slots(length));
  for (std::size_t type = 0; type < kNeedleTypes; ++type) {
    value_of.at(type) = draw.below(kNeedleValues);
    slot_of.at(type) = places[type];
    const auto number = static_cast<std::int64_t>(type);
    tokens[1 + kNeedleSlot * places[type] + draw.below(kNeedleSlot)] =
        kFirstNeedle + kNeedleValues * number + value_of.at(type);
  }
  const std::vector<std::int64_t> asked = draw.order(kNeedleTypes);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const auto type = static_cast<std::size_t>(asked[i]);
    tokens[length - kNeedleTypes + static_cast<std::int64_t>(i)] = kFirstAsk + asked[i];
    values[i] = value_of.at(type);
    slots[i] = slot_of.at(type);
  }
}

}  // namespace

NeedleBatch needle_batch(std::uint64_t seed, std::uint64_t stream, std::int64_t begin,
                         std::int64_t count, std::int64_t length) {
  NeedleBatch batch{at::empty({count, length}, at::kLong),
                    at::empty({count, kNeedleTypes}, at::kLong),
                    at::empty({count, kNeedleTypes}, at::kLong)};
  for (std::int64_t i = 0; i < count; ++i) {
    write_text(Draw(seed, stream, static_cast<std::uint64_t>(begin + i)), length,
               batch.tokens.mutable_data_ptr<std::int64_t>() + i * length,
               batch.values.mutable_data_ptr<std::int64_t>() + i * kNeedleTypes,
               batch.slots.mutable_data_ptr<std::int64_t>() + i * kNeedleTypes);
  }
  return batch;
}

}  // namespace paperlab::experiments::cca
