// The smallest of many keys, on the CPU: the hardest negatives of an image.
//
// The bound up to which they lie is searched by halving the range of the keys. Each step counts the keys up to
// the middle, in vector lanes and without a branch, which is quicker than any sorting. There are at most as
// many steps as a key has bits, and fewer where no two keys near the bound are equal.
#pragma once

#include <vector>

#include "common/order.h"
#include "common/simd.h"

namespace ssd_ops {

// How many keys are at most `bound`.
template <typename Key>
SSD_HOST_DEVICE int64_t count_up_to_lanes(const Key* __restrict keys, int64_t count, Key bound) {
  constexpr int64_t kRun = int64_t{1} << 30;  // so that a sum as wide as a key holds it
  int64_t found = 0;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = begin + kRun < count ? begin + kRun : count;
    Key in_run = 0;
    for (int64_t i = begin; i < end; ++i) in_run += keys[i] <= bound ? 1 : 0;
    found += static_cast<int64_t>(in_run);
  }
  return found;
}

SSD_SIMD(int64_t, count_up_to, (const uint32_t* keys, int64_t count, uint32_t bound), (keys, count, bound))
SSD_SIMD(int64_t, count_up_to, (const uint64_t* keys, int64_t count, uint64_t bound), (keys, count, bound))

// chosen[i] = 1 where keys[i] is at most `bound`; the others stay as they are.
template <typename Key>
SSD_HOST_DEVICE void choose_up_to_lanes(const Key* __restrict keys, int64_t count, Key bound,
                                        uint8_t* __restrict chosen) {
  for (int64_t i = 0; i < count; ++i) chosen[i] |= keys[i] <= bound ? 1 : 0;
}

SSD_SIMD(void, choose_up_to, (const uint32_t* keys, int64_t count, uint32_t bound, uint8_t* chosen),
         (keys, count, bound, chosen))
SSD_SIMD(void, choose_up_to, (const uint64_t* keys, int64_t count, uint64_t bound, uint8_t* chosen),
         (keys, count, bound, chosen))

// chosen[i] = 1 for the `wanted` smallest keys, of equal ones for the first; the others stay as they are. As
// many are not kNoKey (common/order.h).
template <typename Key>
void choose_smallest(const std::vector<Key>& keys, int64_t wanted, uint8_t* chosen) {
  const int64_t count = static_cast<int64_t>(keys.size());
  if (wanted == 0) return;
  Key low = 0, high = kNoKey<Key> - 1;  // the last of those wanted is in low..high
  int64_t below = 0;                    // keys less than low
  while (low < high) {
    const Key middle = low + (high - low) / 2;
    const int64_t up_to = count_up_to(keys.data(), count, middle);
    if (up_to == wanted) return choose_up_to(keys.data(), count, middle, chosen);
    if (up_to > wanted) {
      high = middle;
    } else {
      low = middle + 1;
      below = up_to;
    }
  }
  if (below > 0) choose_up_to(keys.data(), count, Key(low - 1), chosen);
  for (int64_t i = 0; below < wanted; ++i) {
    if (keys[static_cast<size_t>(i)] != low) continue;
    chosen[i] = 1;
    ++below;
  }
}

}  // namespace ssd_ops
