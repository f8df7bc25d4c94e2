#pragma once
// What a result says about where and when it was measured.

#include <string>

#include "paperlab/core/json.h"

namespace paperlab::bench {

std::string today();  // YYYY-MM-DD, UTC

// {"machine", "cpu", "cpus", "isa", "commit", "date", "compiler", "fma_roof_gflops" of the
// instruction set in use, "fma_roofs_gflops" of each}. An empty name becomes one made of the CPU's.
Json describe_machine(const std::string& name);

}  // namespace paperlab::bench
