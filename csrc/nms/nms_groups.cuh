// nms_groups on the GPU: NMS, which lists what it keeps, and then a warp for each other box, which looks
// through the list from the best on. The first that overlaps the box too much is the one that suppressed it.
#pragma once

#include "nms/greedy.cuh"

namespace ssd_ops {

// The kept boxes of each segment, best first, as NMS writes them.
template <typename T, typename Source>
struct KeptLeaders {
  static constexpr bool kWritesOthers = false, kWritesRanks = false;
  Source source;
  int64_t count;
  int64_t* groups;   // [segments, count]: the result, -1 at first
  T* boxes;          // [segments, count, 4]
  int32_t* indices;  // [segments, count]
  int64_t* classes;  // [segments, count], or null without classes
  int32_t* counts;   // [segments]

  __device__ void kept(int64_t segment, int64_t place, int64_t index) const {
    const int64_t first = segment * count;
    groups[first + index] = index;
    store_row(boxes, first + place, source.box(segment, index));
    indices[first + place] = static_cast<int32_t>(index);
    if constexpr (Source::kGrouped) classes[first + place] = source.group(segment, index);
  }
  __device__ void done(int64_t segment, int64_t num_kept, int64_t part, int64_t) const {
    if (part == 0 && threadIdx.x == 0) counts[segment] = static_cast<int32_t>(num_kept);
  }
};

constexpr int kGroupThreads = 256;

template <typename T, typename Source>
__global__ void __launch_bounds__(kGroupThreads)
    nms_groups_kernel(KeptLeaders<T, Source> leaders, int64_t segments, OverlapLimit<T> limit) {
  const int64_t at = global_index() / kWarp;
  if (at >= segments * leaders.count) return;
  const int lane = lane_index();
  const int64_t segment = at / leaders.count, index = at % leaders.count, first = segment * leaders.count;
  bool is_open = false;
  if (lane == 0) {  // which also writes: what is read and written is one thread's own
    const auto score = leaders.source.score(segment, index);
    is_open = score == score && leaders.groups[at] < 0;
  }
  if (!__any_sync(kAllLanes, is_open)) return;
  const Box<T> box = leaders.source.box(segment, index);
  const T box_area = area(box);
  int64_t own_class = 0;
  if constexpr (Source::kGrouped) own_class = leaders.source.group(segment, index);
  const int num_kept = leaders.counts[segment];
  for (int begin = 0; begin < num_kept; begin += kWarp) {
    const int64_t row = first + begin;
    bool hit = begin + lane < num_kept;
    if constexpr (Source::kGrouped) hit = hit && leaders.classes[row + lane] == own_class;
    hit = hit && suppresses(load_row(leaders.boxes, row + lane), box, box_area, limit);
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    if (hits == 0) continue;
    if (lane == 0) leaders.groups[at] = leaders.indices[row + __ffs(static_cast<int>(hits)) - 1];
    return;
  }
}

}  // namespace ssd_ops
