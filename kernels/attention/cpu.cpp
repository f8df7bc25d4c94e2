// Compiled once for each instruction set; cpu_forward.h, cpu_backward.h and cpu_decode.h hold the
// tasks. bfloat16 is converted to float32 as it is read.
#include "kernels/attention/cpu.h"

#include "kernels/attention/cpu_backward.h"
#include "kernels/attention/cpu_decode.h"
#include "kernels/attention/cpu_forward.h"

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
