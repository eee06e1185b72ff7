// Greedy NMS by one block, of boxes that lie in shared memory in the order of their rank.
//
// They are taken a tile of 32 at a time. Each is compared by a warp of its own with the boxes kept so far,
// newest first, and with those before it in the tile; then one warp settles the tile by votes.
#pragma once

#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kNmsTile = kNmsThreads / kWarp;  // boxes at a time: one for each warp

// In shared memory. Without groups (kGrouped), every box is a rival of every other.
template <typename T, typename Group, bool kGrouped>
struct OrderedBoxes {
  const T* boxes;            // [count, 4]
  const Group* groups;       // [count]
  const unsigned* left_out;  // [count] bits: not candidates. Null: none is left out
  int count;
};

// The boxes kept so far that can overlap others, in the order in which they were kept. In shared memory.
template <typename T, typename Group>
struct KeptList {
  T* boxes;  // [.., 4]
  Group* groups;
};

// Shared memory. All 0 at first.
struct GreedyTile {
  int alive[kNmsTile];         // no box kept before this tile suppresses it
  unsigned overlap[kNmsTile];  // a bit for each box before it in the tile that would suppress it
  int num_kept, num_listed;    // num_listed: in KeptList
};

// Whether one of `count` kept boxes suppresses a box: the same answer for all lanes of the warp.
template <bool kGrouped, typename T, typename Group>
__device__ __forceinline__ bool any_kept_suppresses(const KeptList<T, Group>& kept, int count, Box<T> box,
                                                    T box_area, Group group, OverlapLimit<T> limit) {
  constexpr int kRows = 2;  // of 32 boxes that are loaded together
  for (int end = count; end > 0; end -= kRows * kWarp) {
    bool hit = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = end - 1 - r * kWarp - lane_index();
      bool is_rival = k >= 0;
      if constexpr (kGrouped) is_rival = is_rival && kept.groups[k] == group;
      hit = hit || (is_rival && suppresses(load_row(kept.boxes, k), box, box_area, limit));
    }
    if (__any_sync(kAllLanes, hit)) return true;
  }
  return false;
}

// Takes the boxes in order until max_kept are kept in all, those of earlier calls included. keep(i, place)
// gets each kept one, with its place among them. Called by a block of kNmsThreads.
template <typename T, typename Group, bool kGrouped, typename Keep>
__device__ void keep_in_order(const OrderedBoxes<T, Group, kGrouped>& ordered, OverlapLimit<T> limit,
                              int max_kept, const KeptList<T, Group>& kept, GreedyTile& tile,
                              const Keep& keep) {
  const int lane = lane_index(), warp = warp_index();
  for (int base = 0; base < ordered.count && tile.num_kept < max_kept; base += kNmsTile) {
    const int i = base + warp;
    bool lives = i < ordered.count && !(ordered.left_out && test_bit(ordered.left_out, i));
    unsigned overlap = 0;
    if (lives) {
      const Box<T> box = load_row(ordered.boxes, i);
      const T box_area = area(box);
      if (can_overlap(box, box_area)) {
        Group group = 0;
        if constexpr (kGrouped) group = ordered.groups[i];
        lives = !any_kept_suppresses<kGrouped>(kept, tile.num_listed, box, box_area, group, limit);
        bool hit = lives && lane < warp;
        if constexpr (kGrouped) hit = hit && ordered.groups[base + lane] == group;
        hit = hit && suppresses(load_row(ordered.boxes, base + lane), box, box_area, limit);
        overlap = __ballot_sync(kAllLanes, hit);
      }
    }
    if (lane == 0) {
      tile.alive[warp] = lives;
      tile.overlap[warp] = overlap;
    }
    __syncthreads();
    if (warp == 0) {
      const unsigned alive = __ballot_sync(kAllLanes, tile.alive[lane]);
      const unsigned settled = settle_clear(alive, tile.overlap[lane]);
      const int own = base + lane, place = tile.num_kept + __popc(settled & lanes_below(lane));
      const bool is_kept = (settled >> lane & 1) != 0 && place < max_kept;
      const Box<T> box = is_kept ? load_row(ordered.boxes, own) : nowhere<T>();
      const bool is_listed = is_kept && can_overlap(box, area(box));
      const unsigned kept_lanes = __ballot_sync(kAllLanes, is_kept);
      const unsigned listed_lanes = __ballot_sync(kAllLanes, is_listed);
      if (is_listed) {
        const int at = tile.num_listed + __popc(listed_lanes & lanes_below(lane));
        store_row(kept.boxes, at, box);
        if constexpr (kGrouped) kept.groups[at] = ordered.groups[own];
      }
      if (is_kept) keep(own, place);
      __syncwarp();
      if (lane == 0) {
        tile.num_kept += __popc(kept_lanes);
        tile.num_listed += __popc(listed_lanes);
      }
    }
    __syncthreads();
  }
}

}  // namespace ssd_ops
