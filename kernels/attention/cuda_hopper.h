#pragma once
// The forward pass on Hopper: which problems it takes, and their launch.

#include "kernels/attention/block_task.h"
#include "kernels/common/cuda/context.h"
#include "kernels/common/cuda/tma.h"

namespace paperlab::kernels {

// Whether a launch in bfloat16 or float16 can take it: whole tiles of rows, head sizes up to 128,
// rows that are aligned packs, keys and values that boxes can name. Of shapes and addresses alone.
bool fits_hopper(const ForwardLaunch& launch);

// Keys or values of a stream as boxes of so many rows. The view has keys.
BoxTensor key_boxes(const ConstTensorView& view, int box_rows);

// On devices of compute capability 9.0, if fits_hopper.
template <class E>
void launch_hopper(const ForwardLaunch& launch, const Context& context);

}  // namespace paperlab::kernels
