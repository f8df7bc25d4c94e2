// Compiled once for each instruction set; forward.h, backward.h and decode.h hold the tasks.
// bfloat16 is converted to float32 as it is read.
#include "kernels/attention/cpu.h"

#include "kernels/attention/backward.h"
#include "kernels/attention/decode.h"
#include "kernels/attention/forward.h"

namespace paperlab::kernels::PAPERLAB_ISA {

AttentionCpu attention_cpu() {
  return {forward_scratch,
          backward_scratch,
          decode_scratch,
          forward<FloatWord>,
          delta,
          backward<FloatWord>,
          reduce,
          decode<FloatWord>,
          merge};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
