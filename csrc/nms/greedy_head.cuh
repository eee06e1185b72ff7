// The head of a segment that is spread over the GPU (greedy_spread.cuh): the boxes of highest rank. One block
// decides them, and then all boxes after them are compared with those it keeps. Where many boxes overlap, few
// are left, and nothing has to wait for those that are dropped here. The boxes that are left can have a head
// in their turn.
#pragma once

#include "nms/greedy_spread.cuh"

namespace ssd_ops {

#ifdef SSD_OPS_EMULATION
constexpr int kHead = 96;  // so that the tests' sets have more
#else
constexpr int kHead = 256;
#endif

// Boxes of the head in shared memory, where `load_row` can read them.
template <typename T>
struct __align__(16) HeadRows {
  T numbers[4 * kHead];
};

// The boxes that the head keeps and that can overlap others.
template <typename T>
struct HeadKept {
  T* boxes;         // [segments, kHead, 4]
  int64_t* groups;  // [segments, kHead], or null
  int32_t* counts;  // [segments]
  int32_t* kept;    // [segments]: by this head and those before it, with those that overlap nothing
};

// The grid spans the middle of a sample of the boxes: a few that are far away must not make its cells too
// large. Boxes outside go to the cells at its border.
template <typename T>
__device__ void find_bounds(const NmsPlan<T>& plan, const Ranked<T>& ranked, int64_t segment) {
  constexpr int kSample = 128, kParts = kNmsThreads / kSample, kOfPart = kSample / kParts;
  constexpr int kCut = 64;  // the share that is left out at each end
  __shared__ T centers[2][kSample];
  __shared__ int places[2][kSample];
  __shared__ int num_usable;
  const int thread = static_cast<int>(threadIdx.x), own = thread % kSample, part = thread / kSample;
  double* bounds = ranked.bounds + 4 * segment;
  if (thread < 4) bounds[thread] = 0;
  if (thread == 0) num_usable = 0;
  __syncthreads();
  if (part == 0) {
    const Box<T> box = load_row(ranked.boxes, segment * plan.count + own * plan.count / kSample);
    const bool usable = can_overlap(box, area(box));
    centers[0][own] = usable ? static_cast<T>(center_x(box)) : std::numeric_limits<T>::infinity();
    centers[1][own] = usable ? static_cast<T>(center_y(box)) : std::numeric_limits<T>::infinity();
    places[0][own] = places[1][own] = 0;
    if (usable) atomicAdd(&num_usable, 1);
  }
  __syncthreads();
  for (int axis = 0; axis < 2; ++axis) {
    const T mine = centers[axis][own];
    int before = 0;
    for (int i = part * kOfPart; i < (part + 1) * kOfPart; ++i)
      before += centers[axis][i] < mine || (centers[axis][i] == mine && i < own);
    atomicAdd(&places[axis][own], before);
  }
  __syncthreads();
  if (part != 0 || num_usable == 0) return;
  const int cut = num_usable / kCut;
  for (int axis = 0; axis < 2; ++axis) {
    if (places[axis][own] == cut) bounds[axis] = centers[axis][own];
    if (places[axis][own] == num_usable - 1 - cut) bounds[2 + axis] = centers[axis][own];
  }
}

constexpr int kHeadTiles = kHead / kWarp;

// Shared memory of the block that decides a head.
template <typename T, bool kGrouped>
struct Head {
  HeadRows<T> boxes;  // nowhere: those that can overlap nothing
  int64_t groups[kGrouped ? kHead : 1];
  // Of tile and box: a bit for each box of the tile that is before this one and would suppress it.
  unsigned overlaps[kHeadTiles][kHead];
  // A bit for each box of a tile.
  unsigned candidates[kHeadTiles], kept[kHeadTiles], listed[kHeadTiles];
};

// Fills head.overlaps. A warp takes the boxes of one tile, a lane each, and compares some of the same tile or
// of a later one with them.
template <typename T, bool kGrouped>
__device__ void find_overlaps(Head<T, kGrouped>& head, int count, OverlapLimit<T> limit) {
  constexpr int kRows = 8, kParts = kWarp / kRows, kPairs = kHeadTiles * (kHeadTiles + 1) / 2;
  const int lane = lane_index();
  for (int task = warp_index(); task < kPairs * kParts; task += kNmsThreads / kWarp) {
    int later = 0, tile = task / kParts;
    while (tile > later) tile -= ++later;
    const int own = tile * kWarp + lane, begin = later * kWarp + task % kParts * kRows;
    if (begin >= count) continue;
    const Box<T> earlier = load_row(head.boxes.numbers, own);
    unsigned overlaps = 0;
    for (int r = 0; r < kRows; ++r) {
      const Box<T> box = load_row(head.boxes.numbers, begin + r);
      bool hit = own < begin + r;
      if constexpr (kGrouped) hit = hit && head.groups[own] == head.groups[begin + r];
      hit = hit && suppresses(earlier, box, area(box), limit);
      const unsigned all = __ballot_sync(kAllLanes, hit);
      if (lane == r) overlaps = all;
    }
    if (lane < kRows) head.overlaps[tile][begin + lane] = overlaps;
  }
}

// Fills head.kept, tile by tile, with at most max_kept boxes. Called by a warp.
template <typename T, bool kGrouped>
__device__ int keep_head(Head<T, kGrouped>& head, int count, int max_kept) {
  const int lane = lane_index();
  unsigned kept[kHeadTiles];
  int num_kept = 0;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) {
    kept[t] = 0;
    const int own = t * kWarp + lane;
    if (t * kWarp < count && num_kept < max_kept) {
      bool suppressed = false;
#pragma unroll
      for (int earlier = 0; earlier < t; ++earlier)
        suppressed |= (head.overlaps[earlier][own] & kept[earlier]) != 0;
      const unsigned alive = head.candidates[t] & ~__ballot_sync(kAllLanes, suppressed);
      const unsigned settled = settle(alive, alive, head.overlaps[t][own]).kept;
      const bool is_kept =
          (settled >> lane & 1) != 0 && num_kept + __popc(settled & lanes_below(lane)) < max_kept;
      kept[t] = __ballot_sync(kAllLanes, is_kept);
      num_kept += __popc(kept[t]);
    }
    if (lane == 0) head.kept[t] = kept[t];
  }
  return num_kept;
}

// A block for each segment, and another where there is a grid. `from` are the boxes that are not decided yet.
template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kNmsThreads)
    nms_head_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, HeadKept<T> kept) {
  __shared__ Head<T, kGrouped> head;
  if (blockIdx.x >= plan.segments) {
    find_bounds(plan, ranked, blockIdx.x - plan.segments);
    return;
  }
  const int64_t segment = blockIdx.x, first = segment * plan.count;
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index(), lane = lane_index();
  const int count = static_cast<int>(min_of<int64_t>(kHead, from.count(plan, segment)));
  const int kept_before = from.ranks ? kept.kept[segment] : 0;
  if (thread < kHead) {
    const bool is_here = thread < count;
    const Box<T> box = is_here ? load_row(from.boxes, first + thread) : nowhere<T>();
    store_row(head.boxes.numbers, thread, can_overlap(box, area(box)) ? box : nowhere<T>());
    if constexpr (kGrouped) head.groups[thread] = is_here ? from.groups[first + thread] : 0;
    const bool is_candidate = is_here && from.states[first + thread] != kDropped;
    const unsigned candidates = __ballot_sync(kAllLanes, is_candidate);
    if (lane == 0) head.candidates[warp] = candidates;
  }
  __syncthreads();
  find_overlaps(head, count, plan.limit);
  __syncthreads();
  if (warp == 0) {
    const int max_kept = static_cast<int>(min_of<int64_t>(plan.max_kept - kept_before, kHead));
    const int num_kept = keep_head(head, count, max_kept);
    if (lane == 0) kept.kept[segment] = kept_before + num_kept;
  }
  __syncthreads();
  Box<T> box = nowhere<T>();
  bool is_listed = false;
  if (thread < kHead) {
    box = load_row(head.boxes.numbers, thread);
    const bool is_kept = test_bit(head.kept, thread);
    if (thread < count) {
      const int64_t rank = from.rank(first, thread);
      ranked.states[first + rank] = is_kept ? kKept : kDropped;
      if (is_kept) atomicAdd(&ranked.rank_kept[segment * ranked.parts + rank / kNmsThreads], 1);
    }
    is_listed = is_kept && can_overlap(box, area(box));
    const unsigned listed = __ballot_sync(kAllLanes, is_listed);
    if (lane == 0) head.listed[warp] = listed;
  }
  __syncthreads();
  if (thread >= kHead) return;
  int before = 0, listed = 0;
  for (int t = 0; t < kHeadTiles; ++t) {
    if (t == warp) before = listed + __popc(head.listed[t] & lanes_below(lane));
    listed += __popc(head.listed[t]);
  }
  if (is_listed) {
    store_row(kept.boxes, segment * kHead + before, box);
    if constexpr (kGrouped) kept.groups[segment * kHead + before] = head.groups[thread];
  }
  if (thread == 0) kept.counts[segment] = listed;
}

constexpr int kSweepThreads = 512;
constexpr int kSweepParts = 8;                       // threads for one box
constexpr int kSwept = kSweepThreads / kSweepParts;  // boxes of a block

// Drops the boxes after the head that a kept one of it suppresses, and counts those that stay undecided.
// `blocks` for each segment.
template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kSweepThreads)
    nms_sweep_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, HeadKept<T> head, int64_t blocks,
                     int32_t* undecided) {            // [segments, blocks]
  constexpr int kRows = 4;                            // kept boxes that a thread looks at together
  static_assert(kHead % (kRows * kSweepParts) == 0);  // what is behind the kept ones is nowhere
  __shared__ HeadRows<T> kept;
  __shared__ int64_t groups[kGrouped ? kHead : 1];
  __shared__ int num_undecided;
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks, first = segment * plan.count;
  const int64_t count = from.count(plan, segment), begin = kHead + block * kSwept;
  const int thread = static_cast<int>(threadIdx.x);
  if (begin >= count) {
    if (thread == 0) undecided[blockIdx.x] = 0;
    return;
  }
  const int num_kept = head.counts[segment];
  if (thread < kHead) {
    const bool is_here = thread < num_kept;
    store_row(kept.numbers, thread, is_here ? load_row(head.boxes, segment * kHead + thread) : nowhere<T>());
    if constexpr (kGrouped) groups[thread] = is_here ? head.groups[segment * kHead + thread] : 0;
  }
  if (thread == 0) num_undecided = 0;
  __syncthreads();
  const int64_t place = begin + thread / kSweepParts;
  const int part = thread % kSweepParts;
  const uint8_t state = place < count ? from.states[first + place] : kDropped;
  // Where enough are kept already, nothing is left.
  bool dropped = head.kept[segment] >= plan.max_kept;
  if (state == kUndecided && !dropped) {
    const Box<T> box = load_row(from.boxes, first + place);
    const T box_area = area(box);
    int64_t group = 0;
    if constexpr (kGrouped) group = from.groups[first + place];
    for (int k = part; k < num_kept && !dropped; k += kRows * kSweepParts) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int at = k + r * kSweepParts;
        bool is_rival = true;
        if constexpr (kGrouped) is_rival = groups[at] == group;
        dropped |= is_rival && suppresses(load_row(kept.numbers, at), box, box_area, plan.limit);
      }
    }
  }
  const unsigned of_box = ((1u << kSweepParts) - 1) << (lane_index() / kSweepParts * kSweepParts);
  dropped = (__ballot_sync(kAllLanes, dropped) & of_box) != 0;
  __syncwarp();  // all lanes have read the state
  if (part == 0) {
    if (state == kUndecided && dropped) from.states[first + place] = kDropped;
    if (state == kUndecided && !dropped) atomicAdd(&num_undecided, 1);
    if (state == kKept)
      atomicAdd(&ranked.rank_kept[segment * ranked.parts + from.rank(first, place) / kNmsThreads], 1);
  }
  __syncthreads();
  if (thread == 0) undecided[blockIdx.x] = num_undecided;
}

constexpr int kRestBoxes = kSpreadThreads;
constexpr int kSweepsOfRest = kRestBoxes / kSwept;

// Collects the undecided boxes by rank, and counts the cells of the grid, where `filed` has any. `blocks` for
// each segment, and kSweepsOfRest as many in the sweep, the last of them perhaps missing.
template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_rest_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, Rest<T> rest, Filed<T> filed,
                    int64_t blocks, int64_t sweeps, const int32_t* undecided) {  // [segments, sweeps]
  __shared__ int sums[kSpreadThreads / kWarp];
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks, first = segment * plan.count;
  int before = 0;
  for (int64_t s = threadIdx.x; s < block * kSweepsOfRest; s += kSpreadThreads)
    before += undecided[segment * sweeps + s];
  before = block_sum(before, sums);
  const int64_t place = kHead + block * kRestBoxes + threadIdx.x;
  const bool is_here = place < from.count(plan, segment) && from.states[first + place] == kUndecided;
  int total;
  const int64_t to = first + before + block_exclusive_sum(is_here, sums, total);
  if (block == blocks - 1 && threadIdx.x == 0) rest.counts[segment] = before + total;
  if (!is_here) return;
  const Box<T> box = load_row(from.boxes, first + place);
  rest.ranks[to] = static_cast<int32_t>(from.rank(first, place));
  rest.states[to] = kUndecided;
  store_row(rest.boxes, to, box);
  if (rest.groups) rest.groups[to] = from.groups[first + place];
  if (!filed.cells) return;
  const BucketGrid buckets(ranked, segment);
  const int64_t bucket = rest.groups ? buckets.first_cell(from.groups[first + place]) : 0;
  const int64_t cell = bucket + buckets.grid.cell(box);
  filed.cells[to] = static_cast<int32_t>(cell);
  filed.slots[to] = atomicAdd(&filed.counts[segment * ranked.max_cells + cell], 1);
}

}  // namespace ssd_ops
