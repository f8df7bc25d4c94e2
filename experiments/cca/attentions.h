#pragma once
// The ways to attend that one model is given in turn. None has parameters of its own.

#include <cstdint>
#include <string>
#include <vector>

#include "paperlab/cca/options.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::experiments::cca {

enum class Form : std::uint8_t { kFull, kWindow, kSinks, kLmInfinite, kCore };

struct Method {
  std::string name;  // "CCA g=4"
  Form form = Form::kFull;
  paperlab::cca::Options core{};  // kCore
  std::int64_t first = 0;         // kSinks, kLmInfinite: tokens that stay visible
  std::int64_t window = 0;        // last keys, the query's own included
};

Method full_method();
Method window_method(std::int64_t window);
// A query's keys are `sinks` and the last `budget - sinks`.
Method sinks_method(std::int64_t sinks, std::int64_t budget);
Method lm_infinite_method(std::int64_t global_tokens, std::int64_t budget);
Method core_method(const std::string& name, std::int64_t group_size, std::int64_t window,
                   paperlab::cca::Pooling pooling = paperlab::cca::Pooling::kAttention,
                   std::int64_t keep_first = 0);

// Keys, core tokens included, that the last of `length` tokens attends to.
std::int64_t keys_of_last(std::int64_t length, const paperlab::cca::Options& options);

// Lets every layer attend so from now on, whole sequences at a time, without a cache.
void use(nn::Decoder& decoder, const Method& method);

}  // namespace paperlab::experiments::cca
