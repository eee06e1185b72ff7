// Floats as unsigned integers of the same order, and a stable sort by them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/math.h"
#include "common/simd.h"

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
// The key of what has no place in the order. No number has it: that of minus infinity is less.
template <typename Key>
constexpr Key kNoKey = std::numeric_limits<Key>::max();

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

template <typename T>
SSD_HOST_DEVICE void descending_keys_lanes(const T* __restrict scores, int64_t count,
                                           typename FloatTraits<T>::Bits* __restrict keys) {
  using Key = typename FloatTraits<T>::Bits;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = descending_key(scores[i]);
    keys[i] = scores[i] == scores[i] ? key : kNoKey<Key>;
  }
}

SSD_SIMD(void, descending_keys, (const float* scores, int64_t count, uint32_t* keys), (scores, count, keys))
SSD_SIMD(void, descending_keys, (const double* scores, int64_t count, uint64_t* keys), (scores, count, keys))

// The keys of scores, to be sorted upwards; kNoKey for a NaN, and in the lanes that are left.
template <typename T>
void read_keys(const T* scores,  // [count]
               int64_t count, std::vector<typename FloatTraits<T>::Bits>& keys) {
  keys.resize(static_cast<size_t>((count + kLanes - 1) / kLanes * kLanes));
  descending_keys(scores, count, keys.data());
  std::fill(keys.begin() + count, keys.end(), kNoKey<typename FloatTraits<T>::Bits>);
}

// The indices of `keys`, lowest key first, equal keys by index. kNoKey is left out.
template <typename Key>
void sort_keys(const std::vector<Key>& keys, std::vector<int64_t>& order) {
  // Below, the passes over the bins cost more than comparing. Few items are passed over more often, with fewer
  // bins.
  constexpr size_t kRadixFrom = 64, kWideDigitsFrom = 4096;
  order.clear();
  if (sizeof(Key) == 4 && keys.size() <= size_t{1} << 32) {
    std::vector<uint64_t> items, spare;
    items.reserve(keys.size());
    for (size_t i = 0; i < keys.size(); ++i)
      if (keys[i] != kNoKey<Key>) items.push_back(static_cast<uint64_t>(keys[i]) << 32 | i);
    if (items.size() < kRadixFrom)
      std::sort(items.begin(), items.end());
    else if (items.size() < kWideDigitsFrom)
      radix_sort_upper<8>(items, spare, 32);
    else
      radix_sort_upper<11>(items, spare, 32);
    order.reserve(items.size());
    for (const uint64_t item : items) order.push_back(static_cast<int64_t>(item & 0xffffffffu));
    return;
  }
  for (size_t i = 0; i < keys.size(); ++i)
    if (keys[i] != kNoKey<Key>) order.push_back(static_cast<int64_t>(i));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return keys[static_cast<size_t>(a)] < keys[static_cast<size_t>(b)];
  });
}

// The indices of `scores`, highest score first, equal scores by index. NaN scores are left out.
template <typename T>
void sort_descending(const T* scores,  // [count]
                     int64_t count, std::vector<int64_t>& order) {
  using Key = typename FloatTraits<T>::Bits;
  std::vector<Key> keys;
  read_keys(scores, count, keys);
  sort_keys(keys, order);
}
#endif

}  // namespace ssd_ops
