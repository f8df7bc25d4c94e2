// A data race on request, for the test that the thread sanitizer of this build finds it in loops of
// our own pool: planted_race race|none.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "paperlab/core/parallel.h"

int main(int argc, char** argv) {
  const bool is_race = argc > 1 && std::strcmp(argv[1], "race") == 0;
  const paperlab::ThreadPool pool(2);
  std::int64_t plain = 0;
  std::atomic<std::int64_t> atomic = 0;
  std::atomic<int> arrived = 0;
  paperlab::parallel_for(pool, 2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2) {  // both threads are in the loop
    }
    for (int i = 0; i < 1000; ++i) {
      if (is_race) {
        ++plain;
      } else {
        ++atomic;
      }
    }
  });
  std::printf("ran to the end: %lld\n", static_cast<long long>(plain + atomic));
  return 0;
}
