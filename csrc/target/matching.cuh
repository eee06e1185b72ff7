// The matching of ground truths to anchors on the GPU: two launches, memory O(images x ground truths).
//
// match_anchors streams over the anchors once. A block takes a tile of one image's anchors, a thread one
// anchor at a time: it finds the anchor's best ground truth, and the block the best anchor of its tile for
// every ground truth. A warp meets only the ground truths that overlap the bounding box of its 32 anchors.
// The second launch forces matches (rules.h, `Force`): match_anchors again, or a kernel of forced_match.cuh.
//
// An op describes itself by a Problem:
//   T, num_anchors, num_rows (ground truths of all images, padding included), rules
//   GtRange range(image), bool gt(row, box): false for padding
//   Box<T> anchor(i)
//   void write(image, i, anchor, matched, iou): the output of an anchor. `matched` is a row, or kBackground,
//       kBetween, or kNoGts in an image without ground truths
//   int64_t* row_values: [images, A], a word of the output that `write` sets below kTaken (forced_match.cuh)
#pragma once

#include "common/device.cuh"
#include "target/rules.h"

namespace ssd_ops {

constexpr int kMatchThreads = 256;  // of a block, at most: fewer where there are fewer anchors
constexpr int kGtChunk = 128;       // ground truths in shared memory at a time
constexpr int64_t kMaxTiles = 64;   // of one image; bounds the memory for the tiles' best anchors

constexpr int64_t kBackground = -1, kBetween = -2, kNoGts = -3;

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

template <typename T>
__device__ Match<T> best_of_tiles(const MatchPlan<T>& plan, int64_t num_rows, int64_t row) {
  Match<T> match = plan.of_tiles[row];
  for (int64_t t = 1; t < plan.tiles; ++t) match = better_of(match, plan.of_tiles[t * num_rows + row]);
  return match;
}

// Shared memory of match_anchors: a chunk of the image's ground truths.
template <typename T, bool kLowQuality>
struct GtChunk {
  static constexpr int kNone = std::numeric_limits<int>::max();
  Box<T> boxes[kGtChunk];  // nowhere where padding
  T areas[kGtChunk];
  // kLowQuality: the highest IoU of each ground truth with any anchor.
  T highest[kLowQuality ? kGtChunk : 1];
  // Otherwise: the best anchor of each warp.
  Match<T> best[kLowQuality ? 1 : kMatchThreads / kWarp][kLowQuality ? 1 : kGtChunk];
  // The first ground truth of the image that is not padding, of those read so far, or kNone.
  int first;
};

// What a thread knows of its anchor.
template <typename T>
struct AnchorMatch {
  Box<T> box;  // nowhere where the anchor cannot match
  T box_area;
  Box<T> bounds;   // of the anchors of the warp
  T iou;           // the highest so far
  int64_t gt;      // the ground truth that has it, or -1
  bool is_a_best;  // kLowQuality: no anchor has a higher IoU with some ground truth
};

// Reads the `count` ground truths from `chunk` on.
template <bool kLowQuality, typename Problem, typename T>
__device__ __forceinline__ void load_chunk(const Problem& problem, const MatchPlan<T>& plan, GtRange range,
                                           int64_t chunk, int count, GtChunk<T, kLowQuality>& gts) {
  const int threads = static_cast<int>(blockDim.x);
  for (int g = static_cast<int>(threadIdx.x); g < count; g += threads) {
    const int64_t row = range.begin + chunk + g;
    Box<T> box;
    if (problem.gt(row, box)) {
      atomicMin(&gts.first, static_cast<int>(chunk + g));
    } else {
      box = nowhere<T>();
    }
    gts.boxes[g] = box;
    gts.areas[g] = area(box);
    if constexpr (kLowQuality) gts.highest[g] = best_of_tiles(plan, problem.num_rows, row).iou;
  }
  if constexpr (!kLowQuality)
    for (int g = lane_index(); g < count; g += kWarp) gts.best[warp_index()][g] = {T(0), 0};
}

// Each lane's anchor `i` meets the ground truths of the chunk that overlap an anchor of the warp.
template <bool kLowQuality, typename T>
__device__ __forceinline__ void meet_chunk(int64_t chunk, int count, int64_t i, GtChunk<T, kLowQuality>& gts,
                                           AnchorMatch<T>& anchor) {
  const int lane = lane_index(), warp = warp_index();
  for (int g0 = 0; g0 < count; g0 += kWarp) {
    const bool near = g0 + lane < count && overlaps(anchor.bounds, gts.boxes[g0 + lane]);
    for (unsigned left = __ballot_sync(kAllLanes, near); left != 0; left &= left - 1) {
      const int g = g0 + __ffs(static_cast<int>(left)) - 1;
      const T value = iou(anchor.box, anchor.box_area, gts.boxes[g], gts.areas[g]);
      if (value > anchor.iou) {
        anchor.iou = value;
        anchor.gt = chunk + g;
      }
      if constexpr (kLowQuality) {
        anchor.is_a_best = anchor.is_a_best || (value > T(0) && value == gts.highest[g]);
      } else {
        if (!__any_sync(kAllLanes, value > T(0))) continue;
        const Match<T> match = warp_best(Match<T>{value, static_cast<int32_t>(i)});
        if (lane == 0) gts.best[warp][g] = better_of(gts.best[warp][g], match);
      }
    }
  }
}

// What an anchor is matched with by the thresholds.
template <typename T>
__device__ __forceinline__ int64_t matched_by_threshold(const AnchorMatch<T>& anchor, bool usable,
                                                        GtRange range, const MatchRules<T>& rules) {
  if (anchor.gt < 0) return kNoGts;
  if (!usable) return kBackground;
  if (anchor.iou >= rules.match_from) return range.begin + anchor.gt;
  return anchor.iou < rules.background_below ? kBackground : kBetween;
}

// With kLowQuality it is the second kernel: an anchor whose IoU with some ground truth is the highest that
// this ground truth has with any anchor gets its own best one back.
template <bool kLowQuality, typename Problem>
__global__ void __launch_bounds__(kMatchThreads)
    match_anchors(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ GtChunk<T, kLowQuality> gts;
  const int64_t image = blockIdx.x / plan.tiles, tile = blockIdx.x % plan.tiles;
  const int64_t first = tile * plan.tile_size;
  const int64_t end = min_of(first + plan.tile_size, problem.num_anchors);
  const GtRange range = problem.range(image);
  const int64_t num_gts = range.end - range.begin;
  const bool in_chunks = num_gts > kGtChunk;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Match<T>* of_tile = plan.of_tiles + tile * problem.num_rows + range.begin;
  if (thread == 0) gts.first = gts.kNone;
  __syncthreads();

  for (int64_t begin = first; begin < end; begin += threads) {
    const int64_t i = begin + thread;
    const Box<T> box = i < end ? problem.anchor(i) : nowhere<T>();
    const bool usable = has_extent(box);
    AnchorMatch<T> anchor;
    anchor.box = usable ? box : nowhere<T>();
    anchor.box_area = usable ? area(box) : T(0);
    anchor.bounds = warp_bounds(anchor.box);
    anchor.iou = 0;
    anchor.gt = -1;
    anchor.is_a_best = false;

    for (int64_t chunk = 0; chunk < num_gts; chunk += kGtChunk) {
      const int count = static_cast<int>(min_of<int64_t>(kGtChunk, num_gts - chunk));
      if (begin == first || in_chunks) {
        __syncthreads();
        load_chunk(problem, plan, range, chunk, count, gts);
        __syncthreads();
      }
      meet_chunk(chunk, count, i, gts, anchor);
      if constexpr (!kLowQuality) {
        if (begin + threads >= end || in_chunks) {
          __syncthreads();
          for (int g = thread; g < count; g += threads) {
            Match<T> match = gts.best[0][g];
            for (int w = 1; w < threads / kWarp; ++w) match = better_of(match, gts.best[w][g]);
            of_tile[chunk + g] = begin == first || !in_chunks ? match : better_of(of_tile[chunk + g], match);
          }
        }
      }
    }
    if (kLowQuality) {
      if (anchor.is_a_best) problem.write(image, i, box, range.begin + anchor.gt, anchor.iou);
    } else if (i < end) {
      // An anchor that overlaps nothing has an IoU of 0 with the first ground truth.
      if (anchor.gt < 0 && gts.first != gts.kNone) anchor.gt = gts.first;
      problem.write(image, i, box, matched_by_threshold(anchor, usable, range, problem.rules), anchor.iou);
    }
  }
}

}  // namespace ssd_ops
