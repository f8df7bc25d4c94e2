#pragma once
// The connections of a vision transformer as those of a decoder of its width.

#include <vector>

#include "paperlab/mudd/layout_internal.h"
#include "paperlab/mudd/vit_config.h"

namespace paperlab::mudd {

/// A decoder with the same connections, whose other parts mean nothing.
MuddConfig connections_of(const VitConfig& config);

/// Its connections' parameters.
std::vector<Entry> connection_entries(const VitConfig& config);

}  // namespace paperlab::mudd
