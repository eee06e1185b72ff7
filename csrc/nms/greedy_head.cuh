// The head of a segment that is spread over the GPU (greedy_spread.cuh): the boxes of highest rank. It is found
// which of them overlap, one block decides them by that, and then all boxes after them are compared with those
// it keeps. Where many boxes overlap, few are left, and nothing has to wait for those that are dropped here.
// The boxes that are left can have a head in their turn.
#pragma once

#include "nms/greedy_spread.cuh"

namespace ssd_ops {

// Boxes of a head: each thread of a block decides one of the large, which few segments have.
#ifdef SSD_OPS_EMULATION
constexpr int kHead = 96, kLargeHead = 160;  // so that the tests' sets have more
#else
constexpr int kHead = 256, kLargeHead = kNmsThreads;
#endif

// What one head decides. A segment that is nothing but a head has only `overlaps`.
template <typename T>
struct Heads {
  int size;  // a multiple of kTile
  // Of tile and box: a bit for each box of the tile that is before this one and would suppress it. Defined
  // where there is a box, and the tile does not lie behind it.
  unsigned* overlaps;  // [segments, size / kTile, size]
  // Those kept that can overlap others.
  T* boxes;         // [segments, size, 4]
  int64_t* groups;  // [segments, size], or null
  int32_t* counts;  // [segments]: how many they are
  int32_t* kept;    // [segments]: by this head and those before it, with those that overlap nothing
};

// The grid spans the middle of a sample of the boxes: a few that are far away must not make its cells too large.
// Boxes outside go to the cells at its border. Called by a block of kNmsThreads.
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

constexpr int kOverlapThreads = 256;
constexpr int kOverlapRows = 8;  // boxes that a warp compares with a tile

// The warps that find the overlaps of a head, one after the other: each has a tile and some boxes of the same
// or of a later one.
__host__ __device__ constexpr int64_t overlap_tasks(int64_t head) {
  return head / kTile * (head / kTile + 1) / 2 * (kTile / kOverlapRows);
}

// `blocks` for each segment.
template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kOverlapThreads)
    nms_overlaps_kernel(NmsPlan<T> plan, Rest<T> from, Heads<T> heads, int blocks, MarginTest<T> test) {
  constexpr int kParts = kTile / kOverlapRows;
  const int64_t segment = blockIdx.x / blocks, first = segment * plan.count;
  const int lane = lane_index(),
            count = static_cast<int>(min_of<int64_t>(heads.size, from.count(plan, segment)));
  const int task = static_cast<int>(blockIdx.x % blocks) * (kOverlapThreads / kWarp) + warp_index();
  int later = 0, tile = task / kParts;
  while (tile > later) tile -= ++later;
  const int own = tile * kTile + lane, begin = later * kTile + task % kParts * kOverlapRows;
  if (begin >= count) return;
  const auto rival = [&](int k) {
    const Box<T> box = k < count ? load_row(from.boxes, first + k) : nowhere<T>();
    return can_overlap(box, area(box)) ? box : nowhere<T>();
  };
  int64_t group = 0;
  if constexpr (kGrouped) group = own < count ? from.groups[first + own] : 0;
  const auto is_rival = [&](int k) {
    if constexpr (kGrouped)
      if (k >= count || from.groups[first + k] != group) return false;
    return own < k;
  };
  const Box<T> earlier = rival(own);
  const T earlier_area = area(earlier), share = test.share * earlier_area, slack = test.slack * earlier_area;
  unsigned overlaps = 0;
  bool is_open = !MarginTest<T>::knows(plan.limit, earlier_area);
#pragma unroll
  for (int r = 0; r < kOverlapRows; ++r) {
    const Box<T> box = rival(begin + r);
    const T margin = MarginTest<T>::part(box, test.share * area(box), earlier) - share;
    is_open |= margin >= -slack && margin <= slack;
    const unsigned all = __ballot_sync(kAllLanes, margin > slack && is_rival(begin + r));
    if (lane == r) overlaps = all;
  }
  if (__any_sync(kAllLanes, is_open)) {
    for (int r = 0; r < kOverlapRows; ++r) {
      const Box<T> box = rival(begin + r);
      const bool hit = is_rival(begin + r) && suppresses(earlier, box, area(box), plan.limit);
      const unsigned all = __ballot_sync(kAllLanes, hit);
      if (lane == r) overlaps = all;
    }
  }
  if (lane < kOverlapRows)
    heads.overlaps[(segment * (heads.size / kTile) + tile) * heads.size + begin + lane] = overlaps;
}

// Shared memory of the block that decides a head.
struct HeadRoom {
  unsigned kept[kWarp];  // of the tiles, and of those that are missing: a bit for each box
  int sums[kWarp];
};
static_assert(kLargeHead <= kWarp * kTile && kLargeHead <= kNmsThreads);

struct HeadAnswer {
  bool is_kept;
  int place, num_kept;  // among those that this head keeps
};

// Which boxes of a head are kept, `count` of them and at most max_kept; each thread of the block gets the answer
// for its box. The warps settle one tile after the other.
template <typename T>
__device__ HeadAnswer decide_head(const Heads<T>& heads, int64_t segment, int count, bool is_candidate,
                                  int max_kept, HeadRoom& room) {
  constexpr int kAhead = 4;  // tiles whose overlaps are loaded while those before them are settled
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index(), lane = lane_index();
  const unsigned* overlaps = heads.overlaps + segment * (heads.size / kTile) * heads.size + thread;
  const auto load = [&](int tile) {
    return thread < count && tile <= warp ? overlaps[tile * heads.size] : 0;
  };
  if (thread < kWarp) room.kept[thread] = 0;
  unsigned next[kAhead];
#pragma unroll
  for (int a = 0; a < kAhead; ++a) next[a] = load(a);
  bool is_suppressed = false;
  int num_kept = 0;
  __syncthreads();
  for (int begin = 0; begin * kTile < count && num_kept < max_kept; begin += kAhead) {
    unsigned words[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      words[a] = next[a];
      next[a] = load(begin + kAhead + a);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int tile = begin + a;
      if (warp == tile) {
        const unsigned alive = __ballot_sync(kAllLanes, is_candidate && !is_suppressed);
        const unsigned kept = settle_clear(alive, words[a]);
        if (lane == 0) room.kept[tile] = kept;
      }
      __syncthreads();
      const unsigned kept = room.kept[tile];
      is_suppressed |= (words[a] & kept) != 0;
      num_kept += __popc(kept);
    }
  }
  // More than max_kept may be kept by now: only the first count.
  const int upto = warp_inclusive_sum(__popc(room.kept[lane]));
  const int before = warp == 0 ? 0 : __shfl_sync(kAllLanes, upto, max_of(warp - 1, 0));
  const unsigned kept = room.kept[warp];
  const int place = before + __popc(kept & lanes_below(lane));
  return {(kept >> lane & 1) != 0 && place < max_kept, place, min_of(num_kept, max_kept)};
}

// What another block does for the grid of a segment while the first decides a head.
enum class HeadTask { kNone, kBounds, kStarts };

template <typename T>
struct HeadExtra {
  HeadTask task;
  Filed<T> filed;  // for kStarts
};

// A block of heads.size threads for each segment; where there is another task, two of kNmsThreads. `from` are the
// boxes that are not decided yet.
template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kNmsThreads)
    nms_head_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, Heads<T> heads, HeadExtra<T> extra) {
  __shared__ HeadRoom room;
  if (blockIdx.x >= plan.segments) {
    if (extra.task == HeadTask::kBounds)
      find_bounds(plan, ranked, blockIdx.x - plan.segments);
    else
      find_starts(ranked, extra.filed, blockIdx.x - plan.segments);
    return;
  }
  const int64_t segment = blockIdx.x, first = segment * plan.count;
  const int thread = static_cast<int>(threadIdx.x);
  const int count = static_cast<int>(min_of<int64_t>(heads.size, from.count(plan, segment)));
  const int kept_before = from.ranks ? heads.kept[segment] : 0;
  const int max_kept = static_cast<int>(min_of<int64_t>(plan.max_kept - kept_before, heads.size));
  const bool is_here = thread < count, is_candidate = is_here && from.states[first + thread] != kDropped;
  const HeadAnswer answer = decide_head(heads, segment, count, is_candidate, max_kept, room);
  Box<T> box = nowhere<T>();
  if (is_here) {
    const int64_t rank = from.rank(first, thread);
    const uint8_t state = answer.is_kept ? kKept : kDropped;
    from.states[first + thread] = state;
    if (from.ranks) ranked.states[first + rank] = state;
    if (answer.is_kept) atomicAdd(&ranked.rank_kept[segment * ranked.parts + rank / kNmsThreads], 1);
    box = load_row(from.boxes, first + thread);
  }
  const bool is_listed = answer.is_kept && can_overlap(box, area(box));
  int listed;
  const int place = block_exclusive_sum(is_listed, room.sums, listed);
  if (is_listed) {
    store_row(heads.boxes, segment * heads.size + place, box);
    if constexpr (kGrouped) heads.groups[segment * heads.size + place] = from.groups[first + thread];
  }
  if (thread > 0) return;
  heads.counts[segment] = listed;
  heads.kept[segment] = kept_before + answer.num_kept;
}

// Decides segments that are a head and nothing else, a block of heads.size threads each, and tells the writer.
template <typename T, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_only_head_kernel(NmsPlan<T> plan, Ranked<T> ranked, Heads<T> heads, Writer writer) {
  __shared__ HeadRoom room;
  __shared__ unsigned is_kept[kNmsThreads / 32];  // by index
  __shared__ int before[kNmsThreads / 32];
  const int64_t segment = blockIdx.x, first = segment * plan.count;
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(plan.count);
  const int max_kept = static_cast<int>(min_of(plan.max_kept, plan.count));
  const bool is_here = thread < count;
  const bool is_candidate = is_here && ranked.states[first + thread] != kDropped;
  const int64_t index = ranked.order[first + (is_here ? thread : 0)];
  if (thread < kNmsThreads / 32) is_kept[thread] = 0;
  const HeadAnswer answer = decide_head(heads, segment, count, is_candidate, max_kept, room);
  if (answer.is_kept) {
    writer.kept(segment, answer.place, index);
    if constexpr (Writer::kWritesOthers) atomicOr(&is_kept[index / 32], 1u << (index % 32));
  }
  if constexpr (Writer::kWritesRanks)
    if (is_here) writer.ranked(segment, thread, index);
  if constexpr (Writer::kWritesOthers) {
    __syncthreads();
    write_others(writer, segment, count, answer.num_kept, is_kept, before, room.sums);
  }
  writer.done(segment, answer.num_kept, 0, 1);
}

constexpr int kSweepThreads = 256;
constexpr int kSweepParts = 8;  // threads for the same boxes, each with a part of the kept ones
constexpr int kSweepBoxes = 2;  // of a thread
constexpr int kSwept = kSweepThreads / kSweepParts * kSweepBoxes;  // boxes of a block

// Some boxes that a head keeps, in shared memory.
template <typename T, bool kGrouped>
struct __align__(16) SweepRoom {
  T numbers[4 * kHead];  // where `load_row` can read them
  T shares[kHead];       // of MarginTest
  int64_t groups[kGrouped ? kHead : 1];

  __device__ bool is_rival(int k, int64_t group) const {
    if constexpr (kGrouped) return groups[k] == group;
    return true;
  }
};

// Drops the boxes after the head that a kept one of it suppresses, and counts those that stay undecided.
// `blocks` for each segment.
template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kSweepThreads)
    nms_sweep_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, Heads<T> heads, int64_t blocks,
                     MarginTest<T> test, int32_t* undecided) {  // [segments, blocks]
  constexpr int kRows = 4;                                      // kept boxes that a thread looks at together
  static_assert(kHead <= kSweepThreads && kHead % (kRows * kSweepParts) == 0);
  __shared__ SweepRoom<T, kGrouped> room;
  __shared__ int num_undecided;
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks, first = segment * plan.count;
  const int64_t count = from.count(plan, segment), begin = heads.size + block * kSwept;
  const int thread = static_cast<int>(threadIdx.x), part = thread % kSweepParts;
  if (begin >= count) {
    if (thread == 0) undecided[blockIdx.x] = 0;
    return;
  }
  if (thread == 0) num_undecided = 0;
  const int64_t place = begin + thread / kSweepParts * kSweepBoxes;
  // Where enough are kept already, nothing is left.
  const bool is_full = heads.kept[segment] >= plan.max_kept;
  uint8_t states[kSweepBoxes];
  Box<T> boxes[kSweepBoxes];
  T shares[kSweepBoxes], slacks[kSweepBoxes];
  int64_t groups[kSweepBoxes];
  bool is_open[kSweepBoxes];
#pragma unroll
  for (int b = 0; b < kSweepBoxes; ++b) {
    const bool is_here = place + b < count;
    states[b] = is_here ? from.states[first + place + b] : kDropped;
    boxes[b] = is_here ? load_row(from.boxes, first + place + b) : nowhere<T>();
    groups[b] = kGrouped && is_here ? from.groups[first + place + b] : 0;
    const T box_area = area(boxes[b]);
    shares[b] = test.share * box_area;
    slacks[b] = MarginTest<T>::knows(plan.limit, box_area) ? test.slack * box_area
                                                           : std::numeric_limits<T>::infinity();
    is_open[b] = states[b] == kUndecided && !is_full;
  }
  const int num_kept = heads.counts[segment];
  for (int64_t base = 0; base < num_kept; base += kHead) {
    const int here = static_cast<int>(min_of<int64_t>(kHead, num_kept - base));
    __syncthreads();
    if (thread < kHead) {  // what is behind the kept ones is nowhere
      const int64_t at = segment * heads.size + base + thread;
      const Box<T> box = thread < here ? load_row(heads.boxes, at) : nowhere<T>();
      store_row(room.numbers, thread, box);
      room.shares[thread] = test.share * area(box);
      if constexpr (kGrouped) room.groups[thread] = thread < here ? heads.groups[at] : 0;
    }
    __syncthreads();
    T best[kSweepBoxes];  // margins, without the share of the box itself
    bool looks = false;
#pragma unroll
    for (int b = 0; b < kSweepBoxes; ++b) {
      best[b] = -std::numeric_limits<T>::infinity();
      looks |= is_open[b];
    }
    for (int k = part; k < here && looks; k += kRows * kSweepParts) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int at = k + r * kSweepParts;
        const Box<T> kept = load_row(room.numbers, at);
        const T share = room.shares[at];
#pragma unroll
        for (int b = 0; b < kSweepBoxes; ++b) {
          const T margin = MarginTest<T>::part(kept, share, boxes[b]);
          best[b] = room.is_rival(at, groups[b]) ? upper_corner(margin, best[b]) : best[b];
        }
      }
      looks = false;
#pragma unroll
      for (int b = 0; b < kSweepBoxes; ++b) {
        is_open[b] = is_open[b] && !(best[b] - shares[b] > slacks[b]);
        looks |= is_open[b];
      }
    }
#pragma unroll
    for (int b = 0; b < kSweepBoxes; ++b) {
      if (best[b] - shares[b] < -slacks[b]) continue;
      for (int k = part; k < here && is_open[b]; k += kSweepParts)
        is_open[b] = !(room.is_rival(k, groups[b]) &&
                       suppresses(load_row(room.numbers, k), boxes[b], area(boxes[b]), plan.limit));
    }
  }
  __syncthreads();
  const unsigned of_boxes = ((1u << kSweepParts) - 1) << (lane_index() / kSweepParts * kSweepParts);
#pragma unroll
  for (int b = 0; b < kSweepBoxes; ++b) {
    const bool stays = (__ballot_sync(kAllLanes, is_open[b]) & of_boxes) == of_boxes;
    if (part != 0) continue;
    const int64_t at = first + place + b;
    if (states[b] == kUndecided && !stays) from.states[at] = kDropped;
    if (stays) atomicAdd(&num_undecided, 1);
    if (states[b] == kKept)
      atomicAdd(&ranked.rank_kept[segment * ranked.parts + from.rank(first, place + b) / kNmsThreads], 1);
  }
  __syncthreads();
  if (thread == 0) undecided[blockIdx.x] = num_undecided;
}

constexpr int kRestBoxes = kSpreadThreads;
constexpr int kSweepsOfRest = kRestBoxes / kSwept;

// Collects the undecided boxes behind the head by rank, and counts the cells of the grid, where `filed` has any.
// `blocks` for each segment, and kSweepsOfRest as many in the sweep, the last of them perhaps missing.
template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_rest_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> from, Rest<T> rest, Filed<T> filed, int head,
                    int64_t blocks, int64_t sweeps,
                    const int32_t* undecided) {  // [segments, sweeps]
  __shared__ int sums[kSpreadThreads / kWarp];
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks, first = segment * plan.count;
  int before = 0;
  for (int64_t s = threadIdx.x; s < block * kSweepsOfRest; s += kSpreadThreads)
    before += undecided[segment * sweeps + s];
  before = block_sum(before, sums);
  const int64_t place = head + block * kRestBoxes + threadIdx.x;
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
