#pragma once
// Parameters together with their initial values.

#include <cstdint>
#include <vector>

#include "paperlab/mudd/config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::mudd {

/// What a parameter starts as.
enum class Start : std::uint8_t {
  kMatrix,  // normal: initial_values.h
  kZero,
  kOne,
  kGenerator,  // normal of variance 1 / D
  kNewest,     // 1 for the newest source, else 0
  kPostNorm,   // 1e-3
  kAlpha,      // [e_{m mod n} | I_n]
  kScale,      // 0.01
  kRouter,     // uniform, the identity for the layer's own heads
};

struct Entry {
  nn::ParameterSpec spec;
  Start start = Start::kMatrix;
  std::int64_t index = 0;  ///< kAlpha: m.
};

/// The parameters in the order of parameter_specs(). The configuration is not checked.
std::vector<Entry> entries_of(const MuddConfig& config);

}  // namespace paperlab::mudd
