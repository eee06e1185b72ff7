// Sorts of any length, by CUB: the one header that includes it.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "common/launch.cu.h"

namespace ssd_ops {

// Keys and their values, each twice: CUB sorts from one buffer into the other.
struct SortBuffers {
  uint64_t *keys, *sorted_keys;
  int32_t *values, *sorted_values;
};

inline SortBuffers sort_buffers(Launcher& launcher, int64_t count) {
  SortBuffers b;
  b.keys = launcher.scratch<uint64_t>(count);
  b.sorted_keys = launcher.scratch<uint64_t>(count);
  b.values = launcher.scratch<int32_t>(count);
  b.sorted_values = launcher.scratch<int32_t>(count);
  return b;
}

// Ascending by the lowest `bits` bits of the keys; equal keys keep their order. No synchronisation.
inline void radix_sort(Launcher& launcher, const SortBuffers& b, int64_t first, int64_t count, int bits) {
  const auto sort = [&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, b.keys + first, b.sorted_keys + first,
                                           b.values + first, b.sorted_values + first, count, 0, bits,
                                           launcher.stream());
  };
  size_t bytes = 0;
  launcher.check(sort(nullptr, bytes));
  unsigned char* storage = launcher.scratch<unsigned char>(static_cast<int64_t>(bytes));
  launcher.queue([&] { return sort(storage, bytes); });
}

// How many bits numbers below `count` need.
inline int bits_of(int64_t count) {
  int bits = 0;
  while (bits < 63 && int64_t{1} << bits < count) ++bits;
  return bits;
}

}  // namespace ssd_ops
