// Floats as unsigned integers of the same order, and a stable sort by them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/math.h"

namespace ssd_ops {

// Greater floats have smaller keys; -0 and +0 have one key. Not for NaN.
template <typename T>
SSD_HOST_DEVICE typename FloatTraits<T>::Bits descending_key(T value) {
  using Bits = typename FloatTraits<T>::Bits;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  const Bits bits = bit_cast<Bits>(value + T(0));  // -0 + 0 is +0
  return bits & kSign ? bits : ~(bits | kSign);
}

template <typename T>
SSD_HOST_DEVICE T of_descending_key(typename FloatTraits<T>::Bits key) {
  using Bits = typename FloatTraits<T>::Bits;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  return bit_cast<T>(key & kSign ? key : ~key & ~kSign);
}

#ifndef __CUDACC__
// Radix sort, least digit first, by the upper `key_bits` of 64: the lower bits stay with them, and equal
// keys keep their order. A digit that is the same in all keys costs no pass.
template <int kDigit>
void radix_sort_upper(std::vector<uint64_t>& items, std::vector<uint64_t>& spare, int key_bits) {
  constexpr size_t kBins = size_t{1} << kDigit;
  spare.resize(items.size());
  for (int shift = 64 - key_bits; shift < 64; shift += kDigit) {
    size_t starts[kBins] = {};
    for (const uint64_t item : items) ++starts[(item >> shift) & (kBins - 1)];
    if (starts[(items[0] >> shift) & (kBins - 1)] == items.size()) continue;
    size_t next = 0;
    for (size_t& start : starts) {
      const size_t count = start;
      start = next;
      next += count;
    }
    for (const uint64_t item : items) spare[starts[(item >> shift) & (kBins - 1)]++] = item;
    items.swap(spare);
  }
}

// The indices of `scores`, highest score first, equal scores by index. NaN scores are left out.
template <typename T>
void sort_descending(const T* scores,  // [count]
                     int64_t count, std::vector<int64_t>& order) {
  // Below, the passes over the bins cost more than comparing. Few items are passed over more often, with fewer
  // bins.
  constexpr int64_t kRadixFrom = 64, kWideDigitsFrom = 4096;
  order.clear();
  if (sizeof(T) == 4 && count <= int64_t{1} << 32) {
    std::vector<uint64_t> items, spare;
    items.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      if (scores[i] == scores[i])
        items.push_back(static_cast<uint64_t>(descending_key(scores[i])) << 32 | static_cast<uint64_t>(i));
    if (items.empty()) return;
    if (count < kRadixFrom)
      std::sort(items.begin(), items.end());
    else if (count < kWideDigitsFrom)
      radix_sort_upper<8>(items, spare, 32);
    else
      radix_sort_upper<11>(items, spare, 32);
    order.reserve(items.size());
    for (const uint64_t item : items) order.push_back(static_cast<int64_t>(item & 0xffffffffu));
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    if (scores[i] == scores[i]) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
}
#endif

}  // namespace ssd_ops
