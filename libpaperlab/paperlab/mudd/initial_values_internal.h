#pragma once
// Initial values one by one.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "paperlab/mudd/config.h"
#include "paperlab/mudd/layout_internal.h"

namespace paperlab::mudd {

/// A place in the random numbers that depends neither on the variant nor on other options. No role
/// has two matrices in a block; a connection has one of random numbers.
std::uint64_t stream_of(const nn::ParameterSpec& spec);

/// The value of one of entries_of(config), of a dtype that check_initial_dtype() lets pass.
at::Tensor initial_value(const MuddConfig& config, const Entry& entry, std::uint64_t seed,
                         at::ScalarType dtype);

}  // namespace paperlab::mudd
