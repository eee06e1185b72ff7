// The kernels that force matches on the GPU (matching.cuh): one block for each image.
//
// force_bipartite finds the global greedy match: among all free pairs the one with the highest IoU, then the
// lowest anchor, then the lowest ground truth, until anchors or ground truths are used up. A pair that is the
// best one of its anchor and of its ground truth is taken by the greedy match whatever comes first, so all
// such pairs are taken at once, round by round (locally dominant edges; the b-Suitor paper of Khan et al.,
// SISC 2016, proves the equality). A ground truth whose best anchor another one took looks again in the tiles
// whose best was taken, and nowhere else. Rounds: two or three in general, as many as ground truths where all
// of them are equal.
#pragma once

#include "target/matching.cuh"

namespace ssd_ops {

constexpr int kForceThreads = 512;  // of a block, at most: a warp for each ground truth

// What `forced` says of a ground truth without an anchor.
constexpr int32_t kFree = -1, kPadding = -2;

// Set in the row value of an anchor that a ground truth was forced on, until its last value is written.
constexpr int64_t kTaken = int64_t{1} << 61;

// One image in force_bipartite. Every function is called by all threads of the block.
template <typename Problem>
struct BipartiteMatch {
  using T = typename Problem::T;
  const Problem& problem;
  const MatchPlan<T>& plan;
  GtRange range;
  int64_t* row_values;  // [A], of this image
  T floor;              // IoU that a match of the rounds has to exceed
  int lane, warp, warps;

  __device__ __forceinline__ bool is_open(int64_t row) const {
    return plan.forced[row] == kFree && plan.best[row].iou > floor;
  }

  __device__ __forceinline__ void begin() const {
    for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
      plan.best[row] = best_of_tiles(plan, problem.num_rows, row);
      Box<T> box;
      plan.forced[row] = problem.gt(row, box) ? kFree : kPadding;
      plan.winner[row] = 0;
    }
  }

  // A ground truth wins its best anchor unless a free one wants it more.
  __device__ __forceinline__ void find_winners() const {
    for (int64_t row = range.begin + warp; row < range.end; row += warps) {
      if (!is_open(row)) continue;
      const Match<T> match = plan.best[row];
      const Box<T> a = problem.anchor(match.anchor);
      const T area_a = area(a);
      bool beaten = false;
      for (int64_t first = range.begin; first < range.end && !beaten; first += kWarp) {
        const int64_t other = first + lane;
        bool wants_more = false;
        Box<T> box;
        if (other < range.end && other != row && plan.forced[other] == kFree && problem.gt(other, box)) {
          const T value = iou(a, area_a, box, area(box));
          wants_more = value > match.iou || (value == match.iou && other < row);
        }
        beaten = __any_sync(kAllLanes, wants_more);
      }
      if (!beaten && lane == 0) plan.winner[row] = 1;
    }
  }

  __device__ __forceinline__ void take_anchors() const {
    for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
      if (!plan.winner[row]) continue;
      plan.winner[row] = 0;
      plan.forced[row] = plan.best[row].anchor;
      row_values[plan.best[row].anchor] = kTaken;
    }
  }

  // The best free anchor of one tile for a box. By one warp.
  __device__ __forceinline__ Match<T> best_free(int64_t tile, Box<T> gt) const {
    const int64_t begin = tile * plan.tile_size, end = min_of(begin + plan.tile_size, problem.num_anchors);
    const T gt_area = area(gt);
    Match<T> match{T(0), 0};
    for (int64_t i = begin + lane; i < end; i += kWarp) {
      const Box<T> a = problem.anchor(i);
      if (!has_extent(a) || row_values[i] >= kTaken) continue;
      const T value = iou(a, area(a), gt, gt_area);
      // Ascending anchors: the first on ties stays.
      if (value > match.iou) match = {value, static_cast<int32_t>(i)};
    }
    return warp_best(match);
  }

  // Ground truths whose best anchor is taken look for another one. `open` is set where any is left.
  __device__ __forceinline__ void look_again(int& open) const {
    for (int64_t row = range.begin + warp; row < range.end; row += warps) {
      if (!is_open(row)) continue;
      if (row_values[plan.best[row].anchor] >= kTaken) {
        Box<T> box;
        problem.gt(row, box);
        Match<T> match{T(0), 0};
        for (int64_t t = 0; t < plan.tiles; ++t) {
          Match<T>& of_tile = plan.of_tiles[t * problem.num_rows + row];
          Match<T> tile_best = of_tile;
          if (tile_best.iou > T(0) && row_values[tile_best.anchor] >= kTaken) {
            tile_best = best_free(t, box);
            __syncwarp();  // all lanes have read it
            if (lane == 0) of_tile = tile_best;
          }
          match = better_of(match, tile_best);
        }
        __syncwarp();
        if (lane == 0) plan.best[row] = match;
        __syncwarp();
      }
      if (lane == 0 && is_open(row)) atomicOr(&open, 1);
    }
  }

  // What is left overlaps no free anchor: the lowest ground truth takes the lowest anchor. By the first warp.
  __device__ __forceinline__ void take_the_lowest() const {
    if (warp != 0) return;
    int64_t base = -kWarp;
    unsigned free_anchors = 0;
    for (int64_t first = range.begin; first < range.end && base < problem.num_anchors; first += kWarp) {
      unsigned want =
          __ballot_sync(kAllLanes, first + lane < range.end && plan.forced[first + lane] == kFree);
      __syncwarp();  // all lanes have read what lane 0 writes below
      while (want != 0) {
        while (free_anchors == 0 && base + kWarp < problem.num_anchors) {
          base += kWarp;
          const int64_t i = base + lane;
          free_anchors = __ballot_sync(
              kAllLanes, i < problem.num_anchors && row_values[i] < kTaken && has_extent(problem.anchor(i)));
        }
        if (free_anchors == 0) {
          base = problem.num_anchors;
          break;
        }
        const int g = __ffs(static_cast<int>(want)) - 1, i = __ffs(static_cast<int>(free_anchors)) - 1;
        want &= want - 1;
        free_anchors &= free_anchors - 1;
        if (lane == 0) plan.forced[first + g] = static_cast<int32_t>(base + i);
      }
    }
  }
};

// Writes the matches of `forced`.
template <typename Problem>
__device__ void write_forced(const Problem& problem, int64_t image, GtRange range,
                             const int32_t* forced) {  // [rows]
  for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
    const int32_t i = forced[row];
    if (i < 0) continue;
    const Box<typename Problem::T> a = problem.anchor(i);
    Box<typename Problem::T> box;
    problem.gt(row, box);
    problem.write(image, i, a, row, iou(a, box));
  }
}

template <typename Problem>
__global__ void __launch_bounds__(kForceThreads)
    force_bipartite(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ int open;
  const int64_t image = blockIdx.x;
  const GtRange range = problem.range(image);
  const T force_above = problem.rules.force_above;
  const BipartiteMatch<Problem> match{problem,
                                      plan,
                                      range,
                                      problem.row_values + image * problem.num_anchors,
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
  write_forced(problem, image, range, plan.forced);
}

// Each ground truth takes its best anchor, whatever the IoU; where several take one anchor, the last has it.
template <typename Problem>
__global__ void __launch_bounds__(kForceThreads)
    force_argmax(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ int first_usable;
  const int64_t image = blockIdx.x;
  const GtRange range = problem.range(image);
  const int lane = lane_index(), warp = warp_index(), warps = static_cast<int>(blockDim.x) / kWarp;
  int32_t *forced = plan.forced, *winner = plan.winner;
  // A ground truth that overlaps nothing has an IoU of 0 with all: the lowest anchor is its best.
  constexpr int kNone = std::numeric_limits<int>::max();
  if (threadIdx.x == 0) first_usable = kNone;
  __syncthreads();
  for (int64_t begin = 0; begin < problem.num_anchors; begin += blockDim.x) {
    const int64_t i = begin + threadIdx.x;
    if (i < problem.num_anchors && has_extent(problem.anchor(i)))
      atomicMin(&first_usable, static_cast<int>(i));
    __syncthreads();
    const bool found = first_usable != kNone;
    __syncthreads();
    if (found) break;
  }
  for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
    Box<T> box;
    const Match<T> match = best_of_tiles(plan, problem.num_rows, row);
    const int32_t lowest = first_usable == kNone ? kPadding : static_cast<int32_t>(first_usable);
    forced[row] = !problem.gt(row, box) ? kPadding : (match.iou > T(0) ? match.anchor : lowest);
  }
  __syncthreads();
  for (int64_t row = range.begin + warp; row < range.end; row += warps) {
    bool taken_later = false;
    for (int64_t first = row + 1; first < range.end && !taken_later; first += kWarp) {
      const bool same = first + lane < range.end && forced[first + lane] == forced[row];
      taken_later = __any_sync(kAllLanes, same);
    }
    if (lane == 0) winner[row] = taken_later ? kPadding : forced[row];
  }
  __syncthreads();
  write_forced(problem, image, range, winner);
}

}  // namespace ssd_ops
