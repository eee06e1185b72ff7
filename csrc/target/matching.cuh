// The matching of ground truths to anchors on the GPU: two launches, memory O(images x ground truths).
//
// match_anchors streams over the anchors once. A block takes a tile of one image's anchors, a thread one
// anchor at a time: it finds the anchor's best ground truth, and the block the best anchor of its tile for
// every ground truth. A warp meets only the ground truths that overlap the bounding box of its 32 anchors.
// The second launch forces matches (rules.h, `Force`): match_anchors again, or a kernel of forced_match.cuh.
//
// An op describes itself by a Problem:
//   T, num_anchors, num_rows (ground truths of all images, padding included), rules
//   GtRange range(image), by a whole warp; bool gt(row, box): false for padding
//   Box<T> anchor(i)
//   void write(image, range, i, anchor, matched, iou): the output of an anchor. `matched` is a ground truth of
//       the image, or kBackground, kBetween, or kNoGts in an image without ground truths
#pragma once

#include "common/device.cuh"
#include "target/rules.h"

namespace ssd_ops {

constexpr int kMatchThreads = 128;  // of a block
constexpr int kMatchWarps = kMatchThreads / kWarp;
constexpr int kGtChunk = kMatchThreads;  // ground truths in shared memory at a time
constexpr int kMaxTiles = 128;           // of one image; bounds the memory for the tiles' best anchors
constexpr int kFewGts = 2;               // so few cost no more than to find out whether they are near

constexpr int kBackground = -1, kBetween = -2, kNoGts = -3;

// The greatest of the lanes' integers.
template <typename N>
__device__ __forceinline__ N warp_greatest(N value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(N) == 4) return __reduce_max_sync(kAllLanes, value);
#endif
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = max_of(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// A pair seen from its ground truth. No anchor: IoU 0.
template <typename T>
struct alignas(2 * sizeof(T)) Match {
  using Index = typename FloatTraits<T>::Signed;  // as wide as T: without padding
  T iou;
  Index anchor;
};

// The greatest of the lanes' numbers from 0 on, whose bits have the order of the numbers.
template <typename T>
__device__ __forceinline__ T warp_highest(T value) {
  using Bits = typename FloatTraits<T>::Signed;
  return bit_cast<T>(warp_greatest(bit_cast<Bits>(value)));
}

// The best of the lanes' matches: the highest IoU, then the lowest anchor.
template <typename T>
__device__ __forceinline__ Match<T> warp_best(Match<T> m) {
  using Index = typename Match<T>::Index;
  constexpr Index kLast = std::numeric_limits<int32_t>::max();
  const T highest = warp_highest(m.iou);
  return {highest, kLast - warp_greatest(m.iou == highest ? kLast - m.anchor : Index(0))};
}

template <typename T>
__device__ __forceinline__ Box<T> warp_bounds(Box<T> b) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    b.x1 = lower_corner(b.x1, __shfl_xor_sync(kAllLanes, b.x1, step));
    b.y1 = lower_corner(b.y1, __shfl_xor_sync(kAllLanes, b.y1, step));
    b.x2 = upper_corner(b.x2, __shfl_xor_sync(kAllLanes, b.x2, step));
    b.y2 = upper_corner(b.y2, __shfl_xor_sync(kAllLanes, b.y2, step));
  }
  return b;
}

template <typename T>
struct GtState;  // forced_match.cuh

// Where an image's anchors are cut, and what the kernels hand over.
template <typename T>
struct MatchPlan {
  int tiles, tile_size;
  Match<T>* of_tiles;  // [rows, tiles]: the best anchor of the tile
  GtState<T>* gts;     // [rows], or null: for images that have more than fit into shared memory
  unsigned* taken;     // [images, words], or null: the same for anchors
};

// What match_anchors found for a ground truth, as a warp keeps it: tile 32 j + lane in of_lane[j]. The last tile
// stands for those that are missing.
template <typename T>
struct TilesOfGt {
  Match<T> of_lane[kMaxTiles / kWarp];

  static __device__ __forceinline__ int tile(const MatchPlan<T>& plan, int j) {
    return min_of(j * kWarp + lane_index(), plan.tiles - 1);
  }
  __device__ __forceinline__ TilesOfGt(const MatchPlan<T>& plan, int64_t row) {
    for (int j = 0; j < kMaxTiles / kWarp; ++j) of_lane[j] = plan.of_tiles[row * plan.tiles + tile(plan, j)];
  }
  __device__ __forceinline__ Match<T> best() const {
    Match<T> match{T(0), 0};
    for (const Match<T>& other : of_lane)  // ascending anchors: the first on ties stays
      if (other.iou > match.iou) match = other;
    return warp_best(match);
  }
};

// Shared memory of match_anchors: a chunk of the image's ground truths.
template <typename T, bool kLowQuality>
struct GtChunk {
  alignas(16) T boxes[4 * kGtChunk];  // nowhere where padding
  // kLowQuality: the highest IoU of each ground truth with any anchor.
  T highest[kLowQuality ? kGtChunk : 1];
  // Otherwise: the best anchor of each warp.
  Match<T> best[kLowQuality ? 1 : kMatchWarps][kLowQuality ? 1 : kGtChunk];
  // Which are not padding.
  unsigned found[kGtChunk / kWarp];
};

// What a thread knows of its anchor.
template <typename T>
struct AnchorMatch {
  Box<T> box;  // nowhere where the anchor cannot match
  T box_area;
  Box<T> bounds;   // of the anchors of the warp
  T iou;           // the highest so far
  int gt;          // the ground truth that has it, or -1
  bool is_a_best;  // kLowQuality: no anchor has a higher IoU with some ground truth
};

// Reads the `count` ground truths from `chunk` on.
template <bool kLowQuality, typename Problem, typename T>
__device__ __forceinline__ void load_chunk(const Problem& problem, const MatchPlan<T>& plan, GtRange range,
                                           int chunk, int count, GtChunk<T, kLowQuality>& gts) {
  const int g = static_cast<int>(threadIdx.x), lane = lane_index(), warp = warp_index();
  Box<T> box = nowhere<T>();
  const bool is_gt = g < count && problem.gt(range.begin + chunk + g, box);
  store_row(gts.boxes, g, is_gt ? box : nowhere<T>());
  const unsigned found = __ballot_sync(kAllLanes, is_gt);
  if (lane == 0) gts.found[warp] = found;
  if constexpr (kLowQuality)
    for (int row = warp; row < count; row += kMatchWarps) {
      const Match<T> match = TilesOfGt<T>(plan, range.begin + chunk + row).best();
      if (lane == 0) gts.highest[row] = match.iou;
    }
}

// The first ground truth of a chunk that is not padding, or -1.
template <bool kLowQuality, typename T>
__device__ __forceinline__ int first_of_chunk(int chunk, const GtChunk<T, kLowQuality>& gts) {
  for (int w = 0; w < kGtChunk / kWarp; ++w)
    if (gts.found[w] != 0) return chunk + w * kWarp + __ffs(static_cast<int>(gts.found[w])) - 1;
  return -1;
}

// Each lane's anchor meets the first kCount of the ground truths `left` from g0 on: several at once, because the
// division of one hides that of the other. `best` is the best lane of the ground truth g0 + lane.
template <int kCount, bool kLowQuality, typename T>
__device__ __forceinline__ void meet_some(unsigned& left, int chunk, int g0,
                                          const GtChunk<T, kLowQuality>& gts, AnchorMatch<T>& anchor,
                                          Match<T>& best) {
  int at[kCount];
  T values[kCount];
  for (int j = 0; j < kCount; ++j) {
    at[j] = __ffs(static_cast<int>(left)) - 1;
    left &= left - 1;
    const Box<T> gt = load_row(gts.boxes, g0 + at[j]);
    values[j] = iou(anchor.box, anchor.box_area, gt, area(gt));
  }
  for (int j = 0; j < kCount; ++j) {
    if (values[j] > anchor.iou) {
      anchor.iou = values[j];
      anchor.gt = chunk + g0 + at[j];
    }
    if constexpr (kLowQuality) {
      anchor.is_a_best = anchor.is_a_best || (values[j] > T(0) && values[j] == gts.highest[g0 + at[j]]);
    } else {
      const T highest = warp_highest(values[j]);
      const unsigned has_it =
          __ballot_sync(kAllLanes, values[j] == highest);  // where it is 0, any lane will do
      if (lane_index() == at[j]) best = {highest, __ffs(static_cast<int>(has_it)) - 1};
    }
  }
}

// Each lane's anchor `i` meets the ground truths of the chunk; with `by_bounds` those that overlap an anchor of
// the warp.
template <bool kLowQuality, typename T>
__device__ __forceinline__ void meet_chunk(int chunk, int count, bool by_bounds, int32_t i,
                                           GtChunk<T, kLowQuality>& gts, AnchorMatch<T>& anchor) {
  const int lane = lane_index();
  for (int g0 = 0; g0 < count; g0 += kWarp) {
    const bool near = by_bounds ? overlaps(anchor.bounds, load_row(gts.boxes, g0 + lane)) : g0 + lane < count;
    unsigned left = __ballot_sync(kAllLanes, near);
    Match<T> best{T(0), 0};
    while ((left & (left - 1)) != 0) meet_some<2>(left, chunk, g0, gts, anchor, best);
    if (left != 0) meet_some<1>(left, chunk, g0, gts, anchor, best);
    if constexpr (!kLowQuality)
      if (g0 + lane < count) gts.best[warp_index()][g0 + lane] = {best.iou, i - lane + best.anchor};
  }
}

// What an anchor is matched with by the thresholds.
template <typename T>
__device__ __forceinline__ int matched_by_threshold(const AnchorMatch<T>& anchor, bool usable,
                                                    const MatchRules<T>& rules) {
  if (anchor.gt < 0) return kNoGts;
  if (!usable) return kBackground;
  if (anchor.iou >= rules.match_from) return anchor.gt;
  return anchor.iou < rules.background_below ? kBackground : kBetween;
}

// With kLowQuality it is the second kernel: an anchor whose IoU with some ground truth is the highest that
// this ground truth has with any anchor gets its own best one back.
template <bool kLowQuality, typename Problem>
__global__ void __launch_bounds__(kMatchThreads)
    match_anchors(Problem problem, MatchPlan<typename Problem::T> plan) {
  using T = typename Problem::T;
  __shared__ GtChunk<T, kLowQuality> gts;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned tiles = static_cast<unsigned>(plan.tiles), tile_size = static_cast<unsigned>(plan.tile_size);
  const unsigned image = blockIdx.x / tiles, tile = blockIdx.x % tiles, first = tile * tile_size;
  const unsigned end = min_of(first + tile_size, static_cast<unsigned>(problem.num_anchors));
  const GtRange range = problem.range(image);
  const int num_gts = static_cast<int>(range.end - range.begin);
  const bool in_chunks = num_gts > kGtChunk, by_bounds = num_gts > kFewGts;
  int first_gt = -1;

  for (unsigned begin = first; begin < end; begin += kMatchThreads) {
    const unsigned i = begin + threadIdx.x;
    AnchorMatch<T> anchor;
    anchor.box = nowhere<T>();
    if (i < end) anchor.box = problem.anchor(i);
    // While the anchor is on its way.
    if (begin == first && num_gts > 0) load_chunk(problem, plan, range, 0, min_of(kGtChunk, num_gts), gts);
    const bool usable = has_extent(anchor.box);
    if (!usable) anchor.box = nowhere<T>();
    anchor.box_area = area(anchor.box);
    if (by_bounds) anchor.bounds = warp_bounds(anchor.box);
    anchor.iou = 0;
    anchor.gt = -1;
    anchor.is_a_best = false;

    for (int chunk = 0; chunk < num_gts; chunk += kGtChunk) {
      const int count = min_of(kGtChunk, num_gts - chunk);
      if (in_chunks && (begin > first || chunk > 0)) load_chunk(problem, plan, range, chunk, count, gts);
      __syncthreads();
      if (first_gt < 0) first_gt = first_of_chunk(chunk, gts);
      meet_chunk(chunk, count, by_bounds, static_cast<int32_t>(i), gts, anchor);
      __syncthreads();
      if constexpr (!kLowQuality) {
        if (thread < count) {
          Match<T> match = gts.best[0][thread];
          for (int w = 1; w < kMatchWarps; ++w)  // ascending anchors: the first on ties stays
            if (gts.best[w][thread].iou > match.iou) match = gts.best[w][thread];
          Match<T>& of_tile = plan.of_tiles[(range.begin + chunk + thread) * plan.tiles + tile];
          if (begin == first || match.iou > of_tile.iou) of_tile = match;
        }
      }
    }
    if (kLowQuality) {
      if (anchor.is_a_best) problem.write(image, range, i, anchor.box, anchor.gt, anchor.iou);
    } else if (i < end) {
      // An anchor that overlaps nothing has an IoU of 0 with the first ground truth.
      if (anchor.gt < 0) anchor.gt = first_gt;
      problem.write(image, range, i, anchor.box, matched_by_threshold(anchor, usable, problem.rules),
                    anchor.iou);
    }
  }
}

}  // namespace ssd_ops
