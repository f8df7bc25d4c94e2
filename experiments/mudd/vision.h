#pragma once
// Vision transformers on pictures: Table 9.

#include <cstdint>
#include <string>

#include "experiments/mudd/rows.h"
#include "paperlab/mudd/vit_config.h"

namespace paperlab::experiments::mudd {

// The model of a method, "vit" or "muddvit", for pictures of that size with one channel.
paperlab::mudd::VitConfig vit_config(const Config& config, const std::string& method,
                                     std::int64_t height, std::int64_t width,
                                     std::int64_t num_labels);

}  // namespace paperlab::experiments::mudd
