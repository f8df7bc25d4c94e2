#pragma once
// Checks of queries, keys and values that every function of this module makes.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "paperlab/cca/options.h"

namespace paperlab::cca {

// q [B, H, T, D] with D in 1..256 and k of its dtype and device, [B, G, T, D] with H % G == 0.
void check_query_and_key(const char* function, const at::Tensor& query, const at::Tensor& key);

// The same, and v of k's shape.
void check_inputs(const char* function, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value);

// Whether operators look at autocast now, for tensors like x.
bool is_autocast_on(const at::Tensor& x);

// There x in autocast's dtype, as ops::attention takes it (float64 stays); else x.
at::Tensor lowered(const at::Tensor& x);

// Refuses a result that memory does not hold, before any work; `argument` gives it its size.
void check_memory(const char* function, const char* argument, at::IntArrayRef sizes,
                  const at::TensorOptions& options);

void check_options(const char* function, const Options& options);

// `value` at least `low`, and below 2^60 so that sums of a few fit.
void check_count(const char* function, const char* name, std::int64_t value, std::int64_t low);

// The name that the operator of pooling has for it.
std::string_view kind_of(Pooling pooling);

// [B, G, ...] as [B, heads, ...]: a view where G is heads, else a copy.
at::Tensor repeated_heads(const at::Tensor& x, const c10::SymInt& heads);

}  // namespace paperlab::cca
