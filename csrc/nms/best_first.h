// Exact greedy NMS on the CPU where few boxes are kept: takes the best box, closes all that it overlaps too
// much, and takes the best of those still open. Nothing is sorted, and no grid is laid out, but each box kept
// costs a pass over all. So it goes on only as long as a pass closes a good part of them.
#pragma once

#include <algorithm>
#include <vector>

#include "common/box_columns.h"
#include "common/order.h"
#include "common/simd.h"
#include "nms/greedy_few.h"

namespace ssd_ops {

// The key of a box that is open, which `open` says by 1 or 0; of any other kNoKey, which has all bits.
template <typename Key, typename Flag>
SSD_HOST_DEVICE Key open_key(Key key, Flag open) {
  return key | static_cast<Key>(static_cast<Key>(open) - 1);
}

template <typename Key>
struct OpenKeys {
  Key least;
  int64_t count;
};

template <typename Key, typename Flag>
SSD_HOST_DEVICE OpenKeys<Key> look_at_open_lanes(const Key* __restrict keys, const Flag* __restrict open,
                                                 int64_t count) {
  Key least = kNoKey<Key>, found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = open_key(keys[i], open[i]);
    least = min_of(key, least);
    found += key != kNoKey<Key> ? 1 : 0;
  }
  return {least, static_cast<int64_t>(found)};
}

// The first open box with this key. There is one.
template <typename Key, typename Flag>
SSD_HOST_DEVICE int64_t find_open_lanes(const Key* __restrict keys, const Flag* __restrict open, Key wanted) {
  for (int64_t begin = 0;; begin += kLanes) {
    Key any = 0;
    for (int64_t i = begin; i < begin + kLanes; ++i) any |= open_key(keys[i], open[i]) == wanted ? 1 : 0;
    if (!any) continue;
    int64_t i = begin;
    while (open_key(keys[i], open[i]) != wanted) ++i;
    return i;
  }
}

// Flags are as wide as the boxes' numbers, keys as the scores.
#define SSD_OPEN_KEYS(Key, Flag)                                                            \
  SSD_SIMD(OpenKeys<Key>, look_at_open, (const Key* keys, const Flag* open, int64_t count), \
           (keys, open, count))                                                             \
  SSD_SIMD(int64_t, find_open, (const Key* keys, const Flag* open, Key wanted), (keys, open, wanted))
SSD_OPEN_KEYS(uint32_t, int32_t)
SSD_OPEN_KEYS(uint64_t, int32_t)
SSD_OPEN_KEYS(uint32_t, int64_t)
SSD_OPEN_KEYS(uint64_t, int64_t)
#undef SSD_OPEN_KEYS

template <typename T, typename Key>
class BestFirst {
 public:
  // Appends the indices of the boxes kept to `kept`, by score, and gives the key kNoKey to all that are decided.
  // Those that have another one come after those kept, and overlap none of them too much.
  void run(const T* rows,  // [count, 4]
           int64_t count, T threshold,
           std::vector<Key>& keys,  // as read_keys makes them
           std::vector<int64_t>& kept) {
    if (count >= kSampledFrom && !sample_pays(rows, count, threshold, keys)) return;
    columns_.load(rows, static_cast<size_t>(count));
    take(threshold, keys, kept);
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = open_key(keys[i], open_[i]);
  }

 private:
  // A pass over all boxes costs as much as sorting a few of them, and a 64th of all, and comparing those with
  // others. The first boxes may lie alone, so two passes need not pay.
  static constexpr int64_t kFew = 6, kShare = 64, kFree = 2;
  // From so many boxes on, a sample tells whether it pays to look at all of them.
  static constexpr int64_t kSampledFrom = 1024, kSample = 512;

  bool sample_pays(const T* rows, int64_t count, T threshold, const std::vector<Key>& keys) {
    const int64_t step = count / kSample;
    columns_.assign(kSample);
    sample_keys_.clear();
    for (int64_t i = 0; i < kSample; ++i) {
      columns_.set(static_cast<size_t>(i), load_box(rows + 4 * i * step));
      sample_keys_.push_back(keys[static_cast<size_t>(i * step)]);
    }
    sample_kept_.clear();
    return 2 * take(threshold, sample_keys_, sample_kept_) < kSample;
  }

  // Takes the best boxes as long as it pays. Returns how many are open still.
  int64_t take(T threshold, const std::vector<Key>& keys, std::vector<int64_t>& kept) {
    open_.assign(keys.size(), 1);
    const int64_t room = static_cast<int64_t>(keys.size());
    const BoxesInOrder<T> boxes{columns_.x1.data(), columns_.y1.data(),    columns_.x2.data(),
                                columns_.y2.data(), columns_.areas.data(), open_.data()};
    OpenKeys<Key> open = look_at_open(keys.data(), open_.data(), room);
    const int64_t at_first = open.count, worth = kFew + at_first / kShare;
    for (int64_t passes = 1; open.count > 0 && at_first - open.count >= (passes - kFree) * worth; ++passes) {
      const int64_t best = find_open(keys.data(), open_.data(), open.least);
      kept.push_back(best);
      open_[static_cast<size_t>(best)] = 0;
      close_over(boxes, 0, room, columns_.at(static_cast<size_t>(best)), threshold);
      open = look_at_open(keys.data(), open_.data(), room);
    }
    return open.count;
  }

  BoxColumns<T> columns_;
  std::vector<Key> sample_keys_;
  std::vector<typename FloatTraits<T>::Signed> open_;
  std::vector<int64_t> sample_kept_;
};

}  // namespace ssd_ops
