// Greedy NMS by one block for each segment (greedy.cuh).
//
// The block sorts its boxes by score, then takes them in that order, a tile of 32 candidates at a time. Each
// candidate is compared by a warp of its own with the boxes kept so far, newest first; the 32 are settled
// among themselves by votes of one warp. The sorted keys and a bit for each box lie in shared memory.
#pragma once

#include "common/block_sort.cuh"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kNmsTile = kNmsThreads / kWarp;  // candidates at a time: one for each warp

// The kept boxes that can overlap others, in the order in which they were kept.
template <typename T>
struct KeptList {
  T* boxes;         // [segments, count, 4]
  int64_t* groups;  // [segments, count], where the source has groups
};

// Shared memory, beside what nms_block_shared counts.
template <typename T>
struct NmsTile {
  Box<T> boxes[kNmsTile];
  int64_t groups[kNmsTile];
  int alive[kNmsTile];         // no box kept before this tile suppresses it
  unsigned overlap[kNmsTile];  // a bit for each earlier candidate of the tile that would suppress it
  int num_kept, num_listed;    // before this tile
  int sums[kNmsThreads / kWarp];
};

// Bytes for the keys, and for two words on every 32 boxes.
inline int64_t nms_block_shared(int64_t count) {
  return count * 8 + (count + 31) / 32 * 8;
}

// Whether one of `count` listed boxes suppresses a box: the same answer for all lanes of the warp.
template <typename Source, typename T>
__device__ __forceinline__ bool any_listed_suppresses(const T* listed,               // [count, 4]
                                                      const int64_t* listed_groups,  // [count]
                                                      int count, Box<T> box, T box_area, int64_t group,
                                                      T threshold) {
  for (int end = count; end > 0; end -= kWarp) {
    const int k = end - 1 - lane_index();
    bool hit = k >= 0;
    if constexpr (Source::kGrouped) hit = hit && listed_groups[k] == group;
    hit = hit && suppresses(load_row(listed, k), box, box_area, threshold);
    if (__any_sync(kAllLanes, hit)) return true;
  }
  return false;
}

// Which candidates of a tile are kept, a lane for each: a lane is dropped once a lane that overlaps it is
// kept, and kept once all of those are dropped.
__device__ __forceinline__ unsigned settle(bool alive, unsigned overlap) {
  bool undecided = alive;
  unsigned kept = 0, open = __ballot_sync(kAllLanes, undecided);
  while (open != 0) {
    const bool keep = undecided && (overlap & (kept | open)) == 0;
    undecided = undecided && !keep && (overlap & kept) == 0;
    kept |= __ballot_sync(kAllLanes, keep);
    open = __ballot_sync(kAllLanes, undecided);
  }
  return kept;
}

// One warp settles a tile: what is kept goes to the writer, to the bits and to the list.
template <typename Source, typename T, typename Writer>
__device__ __forceinline__ void finish_tile(NmsTile<T>& tile, const Writer& writer, int64_t segment,
                                            int max_kept,
                                            const uint64_t* keys,      // [kNmsTile], of this tile
                                            unsigned* is_kept,         // [count] bits
                                            T* listed,                 // [count, 4]
                                            int64_t* listed_groups) {  // [count]
  const int lane = lane_index();
  const bool alive = tile.alive[lane];
  const unsigned kept = settle(alive, alive ? tile.overlap[lane] : 0);
  const int place = tile.num_kept + __popc(kept & lanes_below(lane));
  const bool keep = (kept >> lane & 1) != 0 && place < max_kept;
  const bool lists = keep && can_overlap(tile.boxes[lane], area(tile.boxes[lane]));
  const unsigned kept_lanes = __ballot_sync(kAllLanes, keep), listed_lanes = __ballot_sync(kAllLanes, lists);
  if (keep) {
    const uint32_t index = static_cast<uint32_t>(keys[lane]);
    writer.kept(segment, place, index);
    atomicOr(&is_kept[index / 32], 1u << (index % 32));
  }
  if (lists) {
    const int at = tile.num_listed + __popc(listed_lanes & lanes_below(lane));
    store_row(listed, at, tile.boxes[lane]);
    if constexpr (Source::kGrouped) listed_groups[at] = tile.groups[lane];
  }
  __syncwarp();
  if (lane == 0) {
    tile.num_kept += __popc(kept_lanes);
    tile.num_listed += __popc(listed_lanes);
  }
}

// The boxes that are not kept, by index, at the places after the kept ones.
template <typename Writer>
__device__ __forceinline__ void write_others(const Writer& writer, int64_t segment, int count, int num_kept,
                                             const unsigned* is_kept,  // [count] bits
                                             int* before,              // [words]: room to work in
                                             int* warp_sums) {
  const int words = (count + 31) / 32, thread = static_cast<int>(threadIdx.x);
  int kept_in_words = 0;
  for (int begin = 0; begin < words; begin += kNmsThreads) {
    const int w = begin + thread;
    int total;
    const int sum = block_exclusive_sum(w < words ? __popc(is_kept[w]) : 0, warp_sums, total);
    if (w < words) before[w] = kept_in_words + sum;
    kept_in_words += total;
  }
  __syncthreads();
  for (int i = thread; i < count; i += kNmsThreads) {
    if (test_bit(is_kept, i)) continue;
    const int kept_before = before[i / 32] + __popc(is_kept[i / 32] & lanes_below(i % 32));
    writer.other(segment, num_kept + i - kept_before, i);
  }
}

template <typename T, typename Source, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_block_kernel(Source source, Writer writer, NmsPlan<T> plan, KeptList<T> list) {
  SSD_DYNAMIC_SHARED(shared);
  __shared__ NmsTile<T> tile;
  const int count = static_cast<int>(plan.count), words = (count + 31) / 32;
  uint64_t* keys = reinterpret_cast<uint64_t*>(shared);
  unsigned* is_kept = reinterpret_cast<unsigned*>(keys + count);
  int* before = reinterpret_cast<int*>(is_kept + words);
  const int64_t segment = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), warp = warp_index();
  T* listed = list.boxes + 4 * segment * plan.count;
  int64_t* listed_groups = list.groups + segment * plan.count;

  for (int i = thread; i < count; i += kNmsThreads) keys[i] = rank_key(source.score(segment, i), i);
  for (int w = thread; w < words; w += kNmsThreads) is_kept[w] = 0;
  if (thread == 0) tile.num_kept = tile.num_listed = 0;
  __syncthreads();
  block_sort(keys, count);

  const int ranked = static_cast<int>(min_of(plan.max_ranked, plan.count));
  const int max_kept = static_cast<int>(min_of(plan.max_kept, plan.count));
  for (int base = 0; base < ranked && tile.num_kept < max_kept; base += kNmsTile) {
    const int rank = base + warp;
    bool lives = rank < ranked && static_cast<uint32_t>(keys[rank] >> 32) != kDroppedKey;
    const int64_t index = lives ? static_cast<uint32_t>(keys[rank]) : 0;
    const Box<T> box = lives ? source.box(segment, index) : nowhere<T>();
    const T box_area = area(box);
    int64_t group = 0;
    if constexpr (Source::kGrouped) group = lives ? source.group(segment, index) : 0;
    if (lives && can_overlap(box, box_area))
      lives = !any_listed_suppresses<Source>(listed, listed_groups, tile.num_listed, box, box_area, group,
                                             plan.threshold);
    if (lane == 0) {
      tile.boxes[warp] = box;
      tile.groups[warp] = group;
      tile.alive[warp] = lives;
    }
    __syncthreads();
    if (lives) {
      const bool hit = lane < warp && tile.alive[lane] && tile.groups[lane] == group &&
                       suppresses(tile.boxes[lane], box, box_area, plan.threshold);
      const unsigned hits = __ballot_sync(kAllLanes, hit);
      if (lane == 0) tile.overlap[warp] = hits;
    }
    __syncthreads();
    if (warp == 0)
      finish_tile<Source>(tile, writer, segment, max_kept, keys + base, is_kept, listed, listed_groups);
    __syncthreads();
  }

  if constexpr (Writer::kWritesRanks)
    for (int rank = thread; rank < count; rank += kNmsThreads)
      writer.ranked(segment, rank, static_cast<uint32_t>(keys[rank]));
  if constexpr (Writer::kWritesOthers)
    write_others(writer, segment, count, tile.num_kept, is_kept, before, tile.sums);
  writer.done(segment, tile.num_kept, 0, 1);
}

}  // namespace ssd_ops
