#pragma once
// Hopper's forward pass on the CPU: the functions of block_hopper.h with a group that feeds and two
// that read as roles (attention_hopper_roles.h), and products and boxes by their documented
// layouts.

#include "tests/support/attention_emulation.h"

namespace paperlab::test {

// Whether the case takes this path on Hopper; then results into tensors.out and tensors.lse, which
// start as NaN. kForward: copies happen at once, products where they are waited for. kReversed: the
// other way round, and the last thread first.
bool emulate_attention_hopper(AttentionTensors& tensors,
                              EmulatedOrder order = EmulatedOrder::kForward);

}  // namespace paperlab::test
