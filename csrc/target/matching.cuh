// The matching of ground truths to anchors on the GPU: two launches, memory O(images x ground truths).
//
// match_anchors streams over the anchors once. A block takes a tile of one image's anchors, a thread one
// anchor at a time: it finds the anchor's best ground truth, and the block the best anchor of its tile for
// every ground truth. A warp meets only the ground truths that overlap the bounding box of its 32 anchors.
//
// force_matches, one block an image, finds the global greedy match from those: among all free pairs the one
// with the highest IoU, then the lowest anchor, then the lowest ground truth, until one side is used up.
// A pair that is the greatest of its anchor's row and of its ground truth's column is taken by the greedy
// match whatever comes first, so all such pairs are taken at once, round by round (locally dominant edges; the
// b-Suitor paper of Khan et al., SISC 2016, proves the equality). A ground truth whose best anchor
// another one took looks again in the tiles whose best was taken, and nowhere else. Rounds: two or three in
// general, as many as ground truths where all of them are equal.
//
// An op describes itself by a Problem:
//   T, num_anchors, num_gts
//   Box<T> anchor(i), bool gt(image, g, box): false for padding
//   int64_t decide(image, iou, g): what an anchor keeps without force: a ground truth, or below 0
//   void write(image, i, anchor, matched, iou): the row of an anchor
//   int64_t* row_values: [images, A], a word of the output that `write` sets below kTaken
//   T min_forced_iou: a forced pair needs more; below 0 where pairs without overlap are forced too
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

constexpr int kMatchThreads = 256;
constexpr int kMatchWarps = kMatchThreads / kWarp;
constexpr int kForceThreads = 512;
constexpr int kGtChunk = 128;     // ground truths in shared memory at a time
constexpr int64_t kMaxTiles = 64;  // of one image; bounds the memory for the tiles' best anchors

// Set in the row value of an anchor that a ground truth was forced on, until the last row is written.
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
    m = better_of(m, Match<T>{__shfl_xor_sync(kAllLanes, m.iou, step),
                              __shfl_xor_sync(kAllLanes, m.anchor, step)});
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

// Where an image's anchors are cut, and what the two kernels hand over.
template <typename T>
struct MatchPlan {
  int64_t tiles, tile_size;
  Match<T>* of_tiles;  // [images, tiles, G]
  Match<T>* of_image;  // [images, G]
  int32_t* forced;     // [images, G]: an anchor, kFree or kPadding
  int32_t* winner;     // [images, G]
};

constexpr int32_t kFree = -1;
constexpr int32_t kPadding = -2;

template <typename Problem>
__global__ void __launch_bounds__(kMatchThreads)
    match_anchors(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ Box<T> gts[kGtChunk];
  __shared__ T areas[kGtChunk];
  __shared__ Match<T> best[kMatchWarps][kGtChunk];
  const int64_t image = blockIdx.x / plan.tiles, tile = blockIdx.x % plan.tiles;
  const int64_t first = tile * plan.tile_size;
  const int64_t end = min_of(first + plan.tile_size, problem.num_anchors);
  const int lane = lane_index(), warp = warp_index();
  Match<T>* of_tile = plan.of_tiles + (image * plan.tiles + tile) * problem.num_gts;

  for (int64_t begin = first; begin < end; begin += kMatchThreads) {
    const int64_t i = begin + threadIdx.x;
    const Box<T> anchor = i < end ? problem.anchor(i) : nowhere<T>();
    const bool usable = has_extent(anchor);
    const Box<T> a = usable ? anchor : nowhere<T>();
    const T area_a = usable ? area(a) : T(0);
    const Box<T> bounds = warp_bounds(a);
    T best_iou = 0;
    int64_t best_gt = -1;

    for (int64_t chunk = 0; chunk < problem.num_gts; chunk += kGtChunk) {
      const int count = static_cast<int>(min_of<int64_t>(kGtChunk, problem.num_gts - chunk));
      if (begin == first || problem.num_gts > kGtChunk) {
        __syncthreads();
        for (int g = static_cast<int>(threadIdx.x); g < count; g += kMatchThreads) {
          Box<T> box;
          if (!problem.gt(image, chunk + g, box)) box = nowhere<T>();
          gts[g] = box;
          areas[g] = area(box);
        }
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
          if (!__any_sync(kAllLanes, value > T(0))) continue;
          const Match<T> match = warp_best(Match<T>{value, static_cast<int32_t>(i)});
          if (lane == 0) best[warp][g] = better_of(best[warp][g], match);
        }
      }
      const bool last = begin + kMatchThreads >= end;
      if (last || problem.num_gts > kGtChunk) {
        __syncthreads();
        for (int g = static_cast<int>(threadIdx.x); g < count; g += kMatchThreads) {
          Match<T> match = best[0][g];
          for (int w = 1; w < kMatchWarps; ++w) match = better_of(match, best[w][g]);
          of_tile[chunk + g] = begin == first || problem.num_gts <= kGtChunk
                                   ? match
                                   : better_of(of_tile[chunk + g], match);
        }
      }
    }
    if (i < end) problem.write(image, i, anchor, usable ? problem.decide(image, best_iou, best_gt) : -1, best_iou);
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

template <typename Problem>
__global__ void __launch_bounds__(kForceThreads)
    force_matches(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ int open;
  const int64_t image = blockIdx.x, num_gts = problem.num_gts;
  const int lane = lane_index(), warp = warp_index();
  constexpr int kWarps = kForceThreads / kWarp;
  Match<T>* of_tiles = plan.of_tiles + image * plan.tiles * num_gts;
  Match<T>* best = plan.of_image + image * num_gts;
  int32_t* forced = plan.forced + image * num_gts;
  int32_t* winner = plan.winner + image * num_gts;
  int64_t* row_values = problem.row_values + image * problem.num_anchors;
  const T floor = max_of(problem.min_forced_iou, T(0));
  const auto is_open = [&](int64_t g) { return forced[g] == kFree && best[g].iou > floor; };

  for (int64_t g = threadIdx.x; g < num_gts; g += kForceThreads) {
    Match<T> match = of_tiles[g];
    for (int64_t t = 1; t < plan.tiles; ++t) match = better_of(match, of_tiles[t * num_gts + g]);
    best[g] = match;
    Box<T> box;
    forced[g] = problem.gt(image, g, box) ? kFree : kPadding;
    winner[g] = 0;
  }

  while (true) {
    if (threadIdx.x == 0) open = 0;
    __syncthreads();
    // A ground truth wins its best anchor unless a free one wants it more.
    for (int64_t g = warp; g < num_gts; g += kWarps) {
      if (!is_open(g)) continue;
      const Match<T> match = best[g];
      const Box<T> a = problem.anchor(match.anchor);
      const T area_a = area(a);
      bool beaten = false;
      for (int64_t k0 = 0; k0 < num_gts && !beaten; k0 += kWarp) {
        const int64_t k = k0 + lane;
        bool wants_more = false;
        Box<T> box;
        if (k < num_gts && k != g && forced[k] == kFree && problem.gt(image, k, box)) {
          const T value = iou(a, area_a, box, area(box));
          wants_more = value > match.iou || (value == match.iou && k < g);
        }
        beaten = __any_sync(kAllLanes, wants_more);
      }
      if (!beaten && lane == 0) winner[g] = 1;
    }
    __syncthreads();
    for (int64_t g = threadIdx.x; g < num_gts; g += kForceThreads) {
      if (!winner[g]) continue;
      winner[g] = 0;
      forced[g] = best[g].anchor;
      row_values[best[g].anchor] = kTaken;
    }
    __syncthreads();
    for (int64_t g = warp; g < num_gts; g += kWarps) {
      if (!is_open(g)) continue;
      if (row_values[best[g].anchor] >= kTaken) {
        Box<T> box;
        problem.gt(image, g, box);
        Match<T> match{T(0), 0};
        for (int64_t t = 0; t < plan.tiles; ++t) {
          Match<T> of_tile = of_tiles[t * num_gts + g];
          if (of_tile.iou > T(0) && row_values[of_tile.anchor] >= kTaken) {
            const int64_t begin = t * plan.tile_size;
            of_tile = best_free(problem, image, begin,
                                min_of(begin + plan.tile_size, problem.num_anchors), box);
            __syncwarp();
            if (lane == 0) of_tiles[t * num_gts + g] = of_tile;
          }
          match = better_of(match, of_tile);
        }
        __syncwarp();
        if (lane == 0) best[g] = match;
        __syncwarp();
      }
      if (lane == 0 && is_open(g)) atomicOr(&open, 1);
    }
    __syncthreads();
    const bool done = !open;
    __syncthreads();
    if (done) break;
  }

  // What is left overlaps no free anchor: the lowest ground truth takes the lowest anchor.
  if (problem.min_forced_iou < T(0) && warp == 0) {
    int64_t base = -kWarp;
    unsigned free_anchors = 0;
    for (int64_t g0 = 0; g0 < num_gts && base < problem.num_anchors; g0 += kWarp) {
      unsigned want = __ballot_sync(kAllLanes, g0 + lane < num_gts && forced[g0 + lane] == kFree);
      while (want != 0) {
        while (free_anchors == 0 && base + kWarp < problem.num_anchors) {
          base += kWarp;
          const int64_t i = base + lane;
          free_anchors =
              __ballot_sync(kAllLanes, i < problem.num_anchors && row_values[i] < kTaken &&
                                           has_extent(problem.anchor(i)));
        }
        if (free_anchors == 0) {
          base = problem.num_anchors;
          break;
        }
        const int g = __ffs(static_cast<int>(want)) - 1, i = __ffs(static_cast<int>(free_anchors)) - 1;
        want &= want - 1;
        free_anchors &= free_anchors - 1;
        if (lane == 0) forced[g0 + g] = static_cast<int32_t>(base + i);
      }
    }
  }
  __syncthreads();
  for (int64_t g = threadIdx.x; g < num_gts; g += kForceThreads) {
    const int32_t i = forced[g];
    if (i < 0) continue;
    const Box<T> a = problem.anchor(i);
    Box<T> box;
    problem.gt(image, g, box);
    problem.write(image, i, a, g, iou(a, box));
  }
}

}  // namespace ssd_ops
