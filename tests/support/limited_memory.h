#pragma once
// Tests of what happens when memory runs out, without a device that has little of it.

#include <cstdint>

#define PAPERLAB_TEST_API extern "C" __attribute__((visibility("default")))

// What is thrown: the error of a device without memory, that of a device that is broken, or that of
// the CPU's own allocator.
enum RefusalKind : int { kDeviceMemoryError = 0, kAcceleratorError = 1, kCpuMemoryError = 2 };

// Refuses allocation `number` from now on (0: the next one) of LibTorch's memory on the CPU, once;
// below 0: none.
PAPERLAB_TEST_API void refuse_allocation(std::int64_t number, int kind);

// From now on allocations of at least so many bytes are counted, from 0.
PAPERLAB_TEST_API void count_allocations(std::int64_t num_bytes);
PAPERLAB_TEST_API std::int64_t num_allocations();
