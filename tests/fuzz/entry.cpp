// libFuzzer's entry; PAPERLAB_FUZZ_TARGET is one of targets.h.
#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t num_bytes) {
  paperlab::io::PAPERLAB_FUZZ_TARGET(data, num_bytes);
  return 0;
}
