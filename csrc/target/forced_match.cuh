// The kernels that force matches on the GPU (matching.cuh): one block for each image.
//
// force_bipartite finds the global greedy match: among all free pairs the one with the highest IoU, then the
// lowest anchor, then the lowest ground truth, until anchors or ground truths are used up. A pair that is the
// best one of its anchor and of its ground truth is taken by the greedy match whatever comes first, so all
// such pairs are taken at once, round by round (locally dominant edges; the b-Suitor paper of Khan et al.,
// SISC 2016, proves the equality). A ground truth whose best anchor another one took looks again in the tiles
// that may have its best one now. Rounds: two or three in general, as many as ground truths where all of them
// are equal.
#pragma once

#include "target/matching.cuh"

namespace ssd_ops {

constexpr int kForceThreads = 512;  // of a block, at most: a warp for each ground truth

// How many ground truths of an image, and how many bits for its anchors, a block keeps in shared memory. Where
// there are more, both are in global memory.
constexpr int kSharedGts = 128;
constexpr int64_t kSharedAnchors = 128 * 1024;

// What `forced` says of a ground truth without an anchor.
constexpr int32_t kFree = -1, kPadding = -2;

SSD_HOST_DEVICE int64_t words_of_bits(int64_t bits) {
  return (bits + 31) / 32;
}

// What is known of a ground truth.
template <typename T>
struct GtState {
  Box<T> box;
  Box<T> best_box;  // of its best anchor
  Match<T> best;    // the best anchor that is free
  int32_t forced;   // an anchor, kFree or kPadding
  int32_t winner;
};

// One image in force_bipartite. Every function is called by all threads of the block.
template <typename Problem>
struct BipartiteMatch {
  using T = typename Problem::T;
  const Problem& problem;
  const MatchPlan<T>& plan;
  GtRange range;
  GtState<T>* gts;  // [num_gts]
  int num_gts;
  unsigned* taken;  // [A] bits
  T floor;          // IoU that a match of the rounds has to exceed
  int lane, warp, warps;

  __device__ __forceinline__ bool is_open(const GtState<T>& gt) const {
    return gt.forced == kFree && gt.best.iou > floor;
  }

  __device__ __forceinline__ void begin() const {
    for (int64_t at = threadIdx.x; at * 32 < problem.num_anchors; at += blockDim.x) taken[at] = 0;
    for (int g = static_cast<int>(threadIdx.x); g < num_gts; g += static_cast<int>(blockDim.x)) {
      Box<T> box;
      gts[g].forced = problem.gt(range.begin + g, box) ? kFree : kPadding;
      gts[g].box = box;
      gts[g].winner = 0;
    }
    for (int g = warp; g < num_gts; g += warps) {
      const Match<T> match = TilesOfGt<T>(plan, range.begin + g).best();
      if (lane == 0) gts[g].best = match;
    }
    __syncthreads();
    for (int g = static_cast<int>(threadIdx.x); g < num_gts; g += static_cast<int>(blockDim.x))
      gts[g].best_box = problem.anchor(gts[g].best.anchor);
  }

  // A ground truth wins its best anchor unless a free one wants it more.
  __device__ __forceinline__ void find_winners() const {
    for (int g = warp; g < num_gts; g += warps) {
      if (!is_open(gts[g])) continue;
      const Match<T> match = gts[g].best;
      const Box<T> a = gts[g].best_box;
      const T area_a = area(a);
      bool beaten = false;
      for (int first = 0; first < num_gts && !beaten; first += kWarp) {
        const int other = first + lane;
        bool wants_more = false;
        if (other < num_gts && other != g && gts[other].forced == kFree) {
          const T value = iou(a, area_a, gts[other].box, area(gts[other].box));
          wants_more = value > match.iou || (value == match.iou && other < g);
        }
        beaten = __any_sync(kAllLanes, wants_more);
      }
      if (!beaten && lane == 0) gts[g].winner = 1;
    }
  }

  __device__ __forceinline__ void take_anchors() const {
    for (int g = static_cast<int>(threadIdx.x); g < num_gts; g += static_cast<int>(blockDim.x)) {
      if (!gts[g].winner) continue;
      const auto anchor = gts[g].best.anchor;
      gts[g].winner = 0;
      gts[g].forced = static_cast<int32_t>(anchor);
      atomicOr(&taken[anchor / 32], 1u << anchor % 32);
    }
  }

  // The best free anchor of one tile for a box. By one warp.
  __device__ __forceinline__ Match<T> best_free(int64_t tile, Box<T> gt) const {
    const int64_t begin = tile * plan.tile_size, end = min_of(begin + plan.tile_size, problem.num_anchors);
    const T gt_area = area(gt);
    Match<T> match{T(0), 0};
    for (int64_t first = begin + lane; first < end; first += kMatchThreads) {
      Box<T> boxes[kMatchWarps];  // all on their way at once
      for (int k = 0; k < kMatchWarps; ++k) boxes[k] = problem.anchor(min_of(first + k * kWarp, end - 1));
      for (int k = 0; k < kMatchWarps; ++k) {
        const int64_t i = first + k * kWarp;
        const T value = iou(boxes[k], area(boxes[k]), gt, gt_area);
        // Ascending anchors: the first on ties stays.
        if (value > match.iou && i < end && has_extent(boxes[k]) && !test_bit(taken, i))
          match = {value, static_cast<typename Match<T>::Index>(i)};
      }
    }
    return warp_best(match);
  }

  // The best free anchor of a ground truth whose best is taken. What is known of a tile whose best anchor is
  // taken stays a bound: it is searched again only when it promises more than all other tiles. By one warp.
  __device__ __forceinline__ Match<T> best_free(int g) const {
    const Box<T> box = gts[g].box;
    TilesOfGt<T> tiles(plan, range.begin + g);
    while (true) {
      const Match<T> match = tiles.best();
      if (!(match.iou > T(0)) || !test_bit(taken, match.anchor)) return match;
      const auto tile = match.anchor / plan.tile_size;
      const Match<T> again = best_free(tile, box);
      for (int j = 0; j < kMaxTiles / kWarp; ++j)
        if (tiles.tile(plan, j) == tile) tiles.of_lane[j] = again;
      __syncwarp();  // all lanes have read it
      if (lane == 0) plan.of_tiles[(range.begin + g) * plan.tiles + tile] = again;
    }
  }

  // Ground truths whose best anchor is taken look for another one. `open` is set where any is left.
  __device__ __forceinline__ void look_again(int& open) const {
    for (int g = warp; g < num_gts; g += warps) {
      if (!is_open(gts[g])) continue;
      if (test_bit(taken, gts[g].best.anchor)) {
        const Match<T> match = best_free(g);
        if (lane == 0) {
          gts[g].best = match;
          gts[g].best_box = problem.anchor(match.anchor);
        }
        __syncwarp();
      }
      if (lane == 0 && is_open(gts[g])) atomicOr(&open, 1);
    }
  }

  // What is left overlaps no free anchor: the lowest ground truth takes the lowest anchor. By the first warp.
  __device__ __forceinline__ void take_the_lowest() const {
    if (warp != 0) return;
    int64_t base = -kWarp;
    unsigned free_anchors = 0;
    for (int first = 0; first < num_gts && base < problem.num_anchors; first += kWarp) {
      unsigned want = __ballot_sync(kAllLanes, first + lane < num_gts && gts[first + lane].forced == kFree);
      __syncwarp();  // all lanes have read what lane 0 writes below
      while (want != 0) {
        while (free_anchors == 0 && base + kWarp < problem.num_anchors) {
          base += kWarp;
          const int64_t i = base + lane;
          free_anchors = __ballot_sync(
              kAllLanes, i < problem.num_anchors && !test_bit(taken, i) && has_extent(problem.anchor(i)));
        }
        if (free_anchors == 0) {
          base = problem.num_anchors;
          break;
        }
        const int g = __ffs(static_cast<int>(want)) - 1, i = __ffs(static_cast<int>(free_anchors)) - 1;
        want &= want - 1;
        free_anchors &= free_anchors - 1;
        if (lane == 0) gts[first + g].forced = static_cast<int32_t>(base + i);
      }
    }
  }
};

// Writes the matches of `forced`.
template <typename Problem, typename T>
__device__ void write_forced(const Problem& problem, int64_t image, GtRange range,
                             const GtState<T>* gts) {  // [num_gts]
  for (int g = static_cast<int>(threadIdx.x); g < range.end - range.begin;
       g += static_cast<int>(blockDim.x)) {
    const int32_t i = gts[g].forced;
    if (i < 0) continue;
    const Box<T> a = problem.anchor(i);
    problem.write(image, range, i, a, g, iou(a, gts[g].box));
  }
}

template <typename Problem>
__global__ void __launch_bounds__(kForceThreads, 1)
    force_bipartite(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ GtState<T> shared_gts[kSharedGts];
  __shared__ unsigned shared_taken[kSharedAnchors / 32];
  __shared__ int open;
  const int64_t image = blockIdx.x;
  const GtRange range = problem.range(image);
  const int num_gts = static_cast<int>(range.end - range.begin);
  const T force_above = problem.rules.force_above;
  const BipartiteMatch<Problem> match{
      problem,
      plan,
      range,
      num_gts <= kSharedGts ? shared_gts : plan.gts + range.begin,
      num_gts,
      plan.taken ? plan.taken + image * words_of_bits(problem.num_anchors) : shared_taken,
      max_of(force_above, T(0)),
      lane_index(),
      warp_index(),
      static_cast<int>(blockDim.x) / kWarp};
  match.begin();
  while (true) {
    if (threadIdx.x == 0) open = 0;
    __syncthreads();
    match.find_winners();
    __syncthreads();
    match.take_anchors();
    __syncthreads();
    match.look_again(open);
    __syncthreads();
    const bool done = !open;
    __syncthreads();
    if (done) break;
  }
  if (force_above < T(0)) match.take_the_lowest();
  __syncthreads();
  write_forced(problem, image, range, match.gts);
}

// Each ground truth takes its best anchor, whatever the IoU; where several take one anchor, the last has it.
template <typename Problem>
__global__ void __launch_bounds__(kForceThreads, 1)
    force_argmax(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ GtState<T> shared_gts[kSharedGts];
  __shared__ int first_usable;
  const int64_t image = blockIdx.x;
  const GtRange range = problem.range(image);
  const int num_gts = static_cast<int>(range.end - range.begin);
  GtState<T>* gts = num_gts <= kSharedGts ? shared_gts : plan.gts + range.begin;
  const int lane = lane_index(), warp = warp_index(), threads = static_cast<int>(blockDim.x);
  // A ground truth that overlaps nothing has an IoU of 0 with all: the lowest anchor is its best.
  constexpr int kNone = std::numeric_limits<int>::max();
  if (threadIdx.x == 0) first_usable = kNone;
  __syncthreads();
  for (int64_t begin = 0; begin < problem.num_anchors; begin += threads) {
    const int64_t i = begin + threadIdx.x;
    const unsigned usable =
        __ballot_sync(kAllLanes, i < problem.num_anchors && has_extent(problem.anchor(i)));
    if (usable != 0 && lane == 0)
      atomicMin(&first_usable, static_cast<int>(i) + __ffs(static_cast<int>(usable)) - 1);
    __syncthreads();
    const bool found = first_usable != kNone;
    __syncthreads();
    if (found) break;
  }
  const int32_t lowest = first_usable == kNone ? kPadding : first_usable;
  for (int g = static_cast<int>(threadIdx.x); g < num_gts; g += threads) {
    Box<T> box;
    gts[g].winner = problem.gt(range.begin + g, box) ? kFree : kPadding;
    gts[g].box = box;
  }
  __syncthreads();
  for (int g = warp; g < num_gts; g += threads / kWarp) {
    const Match<T> match = TilesOfGt<T>(plan, range.begin + g).best();
    if (lane == 0 && gts[g].winner == kFree) gts[g].winner = match.iou > T(0) ? match.anchor : lowest;
  }
  __syncthreads();
  for (int g = warp; g < num_gts; g += threads / kWarp) {
    const int32_t anchor = gts[g].winner;
    bool taken_later = false;
    for (int first = g + 1; first < num_gts && !taken_later; first += kWarp)
      taken_later = __any_sync(kAllLanes, first + lane < num_gts && gts[first + lane].winner == anchor);
    if (lane == 0) gts[g].forced = taken_later ? kPadding : anchor;
  }
  __syncthreads();
  write_forced(problem, image, range, gts);
}

}  // namespace ssd_ops
