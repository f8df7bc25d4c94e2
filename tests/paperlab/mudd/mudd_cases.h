#pragma once
// Configurations that tests of mudd share.

#include <string>

#include "paperlab/core/error.h"
#include "paperlab/mudd/config.h"

namespace paperlab::mudd {

constexpr Variant kVariants[] = {Variant::kMudd,
                                 Variant::kBase,
                                 Variant::kStatic,
                                 Variant::kDynamic,
                                 Variant::kMultiwayStatic,
                                 Variant::kMultiwayDynamic,
                                 Variant::kHyperConnections,
                                 Variant::kLime};

/// 8 blocks of width 64, 4 heads, an FFN of 168: widths are not re-allocated, as 168 is no
/// multiple.
inline MuddConfig small(Variant variant) {
  MuddConfig config;
  config.vocab_size = 256;
  config.num_layers = 8;
  config.d_model = 64;
  config.num_heads = 4;
  config.d_ff = 168;
  config.variant = variant;
  config.ffn_reallocation = false;
  return config;
}

/// The message of the ValueError that `function` throws; empty if it throws none.
template <class F>
std::string value_error(const F& function) {
  try {
    function();
  } catch (const ValueError& error) {
    return error.what();
  }
  return "";
}

}  // namespace paperlab::mudd
