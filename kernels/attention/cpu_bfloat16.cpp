// The tasks of bfloat16 where the CPU multiplies pairs of them (AVX-512 BF16).
#include "kernels/attention/cpu.h"
#include "kernels/attention/cpu_backward.h"
#include "kernels/attention/cpu_decode.h"
#include "kernels/attention/cpu_forward.h"

namespace paperlab::kernels::avx512 {

AttentionCpu attention_cpu_bfloat16() {
  return {forward_scratch,
          backward_scratch,
          decode_scratch,
          forward<PairWord>,
          delta,
          backward<PairWord>,
          reduce,
          decode<PairWord>,
          merge};
}

}  // namespace paperlab::kernels::avx512
