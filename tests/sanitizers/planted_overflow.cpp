// Faults on request, for the test that the address and undefined-behaviour sanitizers of this build
// find them: planted_overflow heap|stack|signed|leak|none.
#include <climits>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

int run(const char* fault, int count) {
  std::vector<int> heap(8, count);
  int stack[8] = {};
  stack[count % 8] = count;
  if (std::strcmp(fault, "heap") == 0) {
    return heap.data()[count];  // NOLINT: planted
  }
  if (std::strcmp(fault, "stack") == 0) {
    int* volatile element = stack;
    return element[count];  // NOLINT: planted
  }
  if (std::strcmp(fault, "signed") == 0) {
    return INT_MAX - 8 + count + heap[0];
  }
  if (std::strcmp(fault, "leak") == 0) {
    int* volatile lost = new int(count);
    lost = nullptr;
    return lost == nullptr ? 0 : 1;  // NOLINT: planted
  }
  return heap[0] + stack[0] == 2 * count ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  // The fault's size comes from the command line's, so that no compiler sees it: 8 elements.
  const int result = run(argc > 1 ? argv[1] : "none", argc * 4);
  std::printf("ran to the end: %d\n", result);
  return 0;
}
