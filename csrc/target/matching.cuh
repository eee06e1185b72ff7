// The matching of ground truths to anchors on the GPU: two launches, memory O(images x ground truths).
//
// match_anchors streams over the anchors once. A block takes a tile of one image's anchors, a thread one
// anchor at a time: it finds the anchor's best ground truth, and the block the best anchor of its tile for
// every ground truth. A warp meets only the ground truths that overlap the bounding box of its 32 anchors.
//
// The second kernel forces matches (rules.h says which). Of them, force_bipartite, one block an image, finds
// the global greedy match: among all free pairs the one with the highest IoU, then the lowest anchor, then
// the lowest ground truth, until one side is used up. A pair that is the greatest of its anchor's row and of
// its ground truth's column is taken by the greedy match whatever comes first, so all such pairs are taken at
// once, round by round (locally dominant edges; the b-Suitor paper of Khan et al., SISC 2016, proves the
// equality). A ground truth whose best anchor another one took looks again in the tiles whose best was taken,
// and nowhere else. Rounds: two or three in general, as many as ground truths where all of them are equal.
//
// An op describes itself by a Problem:
//   T, num_anchors, num_rows (ground truths of all images, padding included), rules
//   GtRange range(image), bool gt(row, box): false for padding
//   Box<T> anchor(i)
//   void write(image, i, anchor, matched, iou): the output of an anchor. `matched` is a row, or kBackground,
//       kBetween, or kNoGts in an image without ground truths
//   int64_t* row_values: [images, A], a word of the output that `write` sets below kTaken
#pragma once

#include "common/device.cuh"
#include "target/rules.h"

namespace ssd_ops {

constexpr int kMatchThreads = 256;  // of a block, at most: fewer where there are fewer anchors
constexpr int kForceThreads = 512;  // the same, with a warp for each ground truth
constexpr int kGtChunk = 128;       // ground truths in shared memory at a time
constexpr int64_t kMaxTiles = 64;   // of one image; bounds the memory for the tiles' best anchors

constexpr int64_t kBackground = -1, kBetween = -2, kNoGts = -3;

// Set in the row value of an anchor that a ground truth was forced on, until its last value is written.
constexpr int64_t kTaken = int64_t{1} << 61;

// A pair seen from its ground truth. No anchor: IoU 0.
template <typename T>
struct Match {
  T iou;
  int32_t anchor;
};

template <typename T>
__device__ __forceinline__ Match<T> better_of(Match<T> a, Match<T> b) {
  return a.iou > b.iou || (a.iou == b.iou && a.anchor <= b.anchor) ? a : b;
}

template <typename T>
__device__ __forceinline__ Match<T> warp_best(Match<T> m) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    m = better_of(
        m, Match<T>{__shfl_xor_sync(kAllLanes, m.iou, step), __shfl_xor_sync(kAllLanes, m.anchor, step)});
  return m;
}

template <typename T>
__device__ __forceinline__ Box<T> warp_bounds(Box<T> b) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    b.x1 = min_of(b.x1, __shfl_xor_sync(kAllLanes, b.x1, step));
    b.y1 = min_of(b.y1, __shfl_xor_sync(kAllLanes, b.y1, step));
    b.x2 = max_of(b.x2, __shfl_xor_sync(kAllLanes, b.x2, step));
    b.y2 = max_of(b.y2, __shfl_xor_sync(kAllLanes, b.y2, step));
  }
  return b;
}

// Where an image's anchors are cut, and what the kernels hand over.
template <typename T>
struct MatchPlan {
  int64_t tiles, tile_size;
  Match<T>* of_tiles;  // [tiles, rows]: the best anchor of the tile
  Match<T>* best;      // [rows]: the best anchor that is free
  int32_t* forced;     // [rows]: an anchor, kFree or kPadding
  int32_t* winner;     // [rows]
};

constexpr int32_t kFree = -1;
constexpr int32_t kPadding = -2;

template <typename T>
__device__ Match<T> best_of_tiles(const MatchPlan<T>& plan, int64_t num_rows, int64_t row) {
  Match<T> match = plan.of_tiles[row];
  for (int64_t t = 1; t < plan.tiles; ++t) match = better_of(match, plan.of_tiles[t * num_rows + row]);
  return match;
}

// With kLowQuality it is the second kernel: an anchor whose IoU with some ground truth is the highest that
// this ground truth has with any anchor gets its own best one back.
template <bool kLowQuality, typename Problem>
__global__ void __launch_bounds__(kMatchThreads)
    match_anchors(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ Box<T> gts[kGtChunk];
  __shared__ T areas[kGtChunk];
  __shared__ T highest[kLowQuality ? kGtChunk : 1];
  __shared__ Match<T> best[kLowQuality ? 1 : kMatchThreads / kWarp][kLowQuality ? 1 : kGtChunk];
  __shared__ int first_gt;
  const int64_t image = blockIdx.x / plan.tiles, tile = blockIdx.x % plan.tiles;
  const int64_t first = tile * plan.tile_size;
  const int64_t end = min_of(first + plan.tile_size, problem.num_anchors);
  const GtRange range = problem.range(image);
  const int64_t num_gts = range.end - range.begin;
  const bool in_chunks = num_gts > kGtChunk;
  const int lane = lane_index(), warp = warp_index(), thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  Match<T>* of_tile = plan.of_tiles + tile * problem.num_rows + range.begin;
  constexpr int kNone = std::numeric_limits<int>::max();
  if (thread == 0) first_gt = kNone;
  __syncthreads();

  for (int64_t begin = first; begin < end; begin += threads) {
    const int64_t i = begin + thread;
    const Box<T> anchor = i < end ? problem.anchor(i) : nowhere<T>();
    const bool usable = has_extent(anchor);
    const Box<T> a = usable ? anchor : nowhere<T>();
    const T area_a = usable ? area(a) : T(0);
    const Box<T> bounds = warp_bounds(a);
    T best_iou = 0;
    int64_t best_gt = -1;
    bool is_a_best = false;

    for (int64_t chunk = 0; chunk < num_gts; chunk += kGtChunk) {
      const int count = static_cast<int>(min_of<int64_t>(kGtChunk, num_gts - chunk));
      if (begin == first || in_chunks) {
        __syncthreads();
        for (int g = thread; g < count; g += threads) {
          Box<T> box;
          if (problem.gt(range.begin + chunk + g, box)) {
            atomicMin(&first_gt, static_cast<int>(chunk + g));
          } else {
            box = nowhere<T>();
          }
          gts[g] = box;
          areas[g] = area(box);
          if constexpr (kLowQuality)
            highest[g] = best_of_tiles(plan, problem.num_rows, range.begin + chunk + g).iou;
        }
        if constexpr (!kLowQuality)
          for (int g = lane; g < count; g += kWarp) best[warp][g] = {T(0), 0};
        __syncthreads();
      }
      for (int g0 = 0; g0 < count; g0 += kWarp) {
        const bool near = g0 + lane < count && overlaps(bounds, gts[g0 + lane]);
        for (unsigned left = __ballot_sync(kAllLanes, near); left != 0; left &= left - 1) {
          const int g = g0 + __ffs(static_cast<int>(left)) - 1;
          const T value = iou(a, area_a, gts[g], areas[g]);
          if (value > best_iou) {
            best_iou = value;
            best_gt = chunk + g;
          }
          if constexpr (kLowQuality) {
            is_a_best = is_a_best || (value > T(0) && value == highest[g]);
          } else {
            if (!__any_sync(kAllLanes, value > T(0))) continue;
            const Match<T> match = warp_best(Match<T>{value, static_cast<int32_t>(i)});
            if (lane == 0) best[warp][g] = better_of(best[warp][g], match);
          }
        }
      }
      if constexpr (!kLowQuality) {
        if (begin + threads >= end || in_chunks) {
          __syncthreads();
          for (int g = thread; g < count; g += threads) {
            Match<T> match = best[0][g];
            for (int w = 1; w < threads / kWarp; ++w) match = better_of(match, best[w][g]);
            of_tile[chunk + g] = begin == first || !in_chunks ? match : better_of(of_tile[chunk + g], match);
          }
        }
      }
    }
    if (kLowQuality) {
      if (is_a_best) problem.write(image, i, anchor, range.begin + best_gt, best_iou);
    } else if (i < end) {
      // An anchor that overlaps nothing has an IoU of 0 with the first ground truth.
      if (best_gt < 0 && first_gt != kNone) best_gt = first_gt;
      int64_t matched = best_gt < 0 ? kNoGts : kBackground;
      if (usable && best_gt >= 0) {
        if (best_iou >= problem.rules.match_from) {
          matched = range.begin + best_gt;
        } else if (!(best_iou < problem.rules.background_below)) {
          matched = kBetween;
        }
      }
      problem.write(image, i, anchor, matched, best_iou);
    }
  }
}

// The best free anchor of one tile for a box.
template <typename Problem, typename T>
__device__ Match<T> best_free(const Problem& problem, int64_t image, int64_t begin, int64_t end, Box<T> gt) {
  const T gt_area = area(gt);
  Match<T> match{T(0), 0};
  for (int64_t i = begin + lane_index(); i < end; i += kWarp) {
    const Box<T> a = problem.anchor(i);
    if (!has_extent(a) || problem.row_values[image * problem.num_anchors + i] >= kTaken) continue;
    const T value = iou(a, area(a), gt, gt_area);
    // Ascending anchors: the first on ties stays.
    if (value > match.iou) match = {value, static_cast<int32_t>(i)};
  }
  return warp_best(match);
}

// Writes the matches of `forced`.
template <typename Problem>
__device__ void write_forced(const Problem& problem, int64_t image, GtRange range, const int32_t* forced) {
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
  const int lane = lane_index(), warp = warp_index(), warps = static_cast<int>(blockDim.x) / kWarp;
  Match<T>* best = plan.best;
  int32_t *forced = plan.forced, *winner = plan.winner;
  int64_t* row_values = problem.row_values + image * problem.num_anchors;
  const T force_above = problem.rules.force_above, floor = max_of(force_above, T(0));
  const auto is_open = [&](int64_t row) { return forced[row] == kFree && best[row].iou > floor; };

  for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
    best[row] = best_of_tiles(plan, problem.num_rows, row);
    Box<T> box;
    forced[row] = problem.gt(row, box) ? kFree : kPadding;
    winner[row] = 0;
  }

  while (true) {
    if (threadIdx.x == 0) open = 0;
    __syncthreads();
    // A ground truth wins its best anchor unless a free one wants it more.
    for (int64_t row = range.begin + warp; row < range.end; row += warps) {
      if (!is_open(row)) continue;
      const Match<T> match = best[row];
      const Box<T> a = problem.anchor(match.anchor);
      const T area_a = area(a);
      bool beaten = false;
      for (int64_t first = range.begin; first < range.end && !beaten; first += kWarp) {
        const int64_t other = first + lane;
        bool wants_more = false;
        Box<T> box;
        if (other < range.end && other != row && forced[other] == kFree && problem.gt(other, box)) {
          const T value = iou(a, area_a, box, area(box));
          wants_more = value > match.iou || (value == match.iou && other < row);
        }
        beaten = __any_sync(kAllLanes, wants_more);
      }
      if (!beaten && lane == 0) winner[row] = 1;
    }
    __syncthreads();
    for (int64_t row = range.begin + threadIdx.x; row < range.end; row += blockDim.x) {
      if (!winner[row]) continue;
      winner[row] = 0;
      forced[row] = best[row].anchor;
      row_values[best[row].anchor] = kTaken;
    }
    __syncthreads();
    for (int64_t row = range.begin + warp; row < range.end; row += warps) {
      if (!is_open(row)) continue;
      if (row_values[best[row].anchor] >= kTaken) {
        Box<T> box;
        problem.gt(row, box);
        Match<T> match{T(0), 0};
        for (int64_t t = 0; t < plan.tiles; ++t) {
          Match<T>& of_tile = plan.of_tiles[t * problem.num_rows + row];
          Match<T> tile_best = of_tile;
          if (tile_best.iou > T(0) && row_values[tile_best.anchor] >= kTaken) {
            const int64_t begin = t * plan.tile_size;
            tile_best =
                best_free(problem, image, begin, min_of(begin + plan.tile_size, problem.num_anchors), box);
            if (lane == 0) of_tile = tile_best;
          }
          match = better_of(match, tile_best);
        }
        __syncwarp();
        if (lane == 0) best[row] = match;
        __syncwarp();
      }
      if (lane == 0 && is_open(row)) atomicOr(&open, 1);
    }
    __syncthreads();
    const bool done = !open;
    __syncthreads();
    if (done) break;
  }

  // What is left overlaps no free anchor: the lowest ground truth takes the lowest anchor.
  if (force_above < T(0) && warp == 0) {
    int64_t base = -kWarp;
    unsigned free_anchors = 0;
    for (int64_t first = range.begin; first < range.end && base < problem.num_anchors; first += kWarp) {
      unsigned want = __ballot_sync(kAllLanes, first + lane < range.end && forced[first + lane] == kFree);
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
        if (lane == 0) forced[first + g] = static_cast<int32_t>(base + i);
      }
    }
  }
  __syncthreads();
  write_forced(problem, image, range, forced);
}

// Each ground truth its best anchor, whatever the IoU; of several on one anchor the last has it.
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
