// The two launches of a match: matching.cuh, then where matches are forced. One more where regions are ignored.
#pragma once

#include "common/launch.cu.h"
#include "target/forced_match.cuh"
#include "target/ignored.cuh"
#include "target/matching.cuh"

namespace ssd_ops {

// `most_gts`: of an image.
template <typename Problem>
void launch_matching(Launcher& launcher, const Problem& problem, int64_t num_images, int64_t most_gts) {
  using T = typename Problem::T;
  const int64_t num_anchors = problem.num_anchors, num_rows = problem.num_rows;
  if (num_images == 0 || num_anchors == 0) return;
  if (num_anchors > std::numeric_limits<int32_t>::max())
    launcher.fail("anchors must be fewer than 2^31 on a GPU, got ", num_anchors);
  const int64_t wanted = std::min(ceil_div(num_anchors, kMatchThreads), int64_t{kMaxTiles});
  const int64_t tile_size = ceil_div(ceil_div(num_anchors, wanted), kMatchThreads) * kMatchThreads;
  MatchPlan<T> plan = {};
  plan.tile_size = static_cast<int>(tile_size);
  plan.tiles = static_cast<int>(ceil_div(num_anchors, tile_size));
  if (num_rows > 0) plan.of_tiles = launcher.scratch<Match<T>>(plan.tiles * num_rows);
  launcher.run(&match_anchors<false, Problem>, num_images * plan.tiles, kMatchThreads, problem, plan);
  const Force force = problem.rules.force;
  if (num_rows == 0 || force == Force::kNone) return;
  if (force == Force::kLowQuality) {
    launcher.run(&match_anchors<true, Problem>, num_images * plan.tiles, kMatchThreads, problem, plan);
    return;
  }
  if (most_gts > kSharedGts) plan.gts = launcher.scratch<GtState<T>>(num_rows);
  if (force == Force::kBipartite && num_anchors > kSharedAnchors)
    plan.taken = launcher.scratch<unsigned>(num_images * words_of_bits(num_anchors));
  const int64_t warps = std::max<int64_t>(ceil_div(num_rows, num_images), 1);
  launcher.run(force == Force::kArgmax ? &force_argmax<Problem> : &force_bipartite<Problem>, num_images,
               static_cast<int>(std::min<int64_t>(warps * kWarp, kForceThreads)), problem, plan);
}

// After the match.
template <typename Problem>
void launch_ignoring(const Launcher& launcher, const Problem& problem, int64_t num_images,
                     const std::optional<Tensor>& ignore_boxes,  // [B, K, 4]
                     double ignore_threshold) {
  using T = typename Problem::T;
  if (!ignore_boxes || ignore_boxes->numel() == 0 || problem.num_anchors == 0) return;
  const DeviceInput boxes(*ignore_boxes);
  const int64_t blocks = ceil_div(problem.num_anchors, kIgnoreThreads);
  launcher.run(&ignore_anchors<Problem>, num_images * blocks, kIgnoreThreads, problem,
               static_cast<unsigned>(blocks), boxes, ignore_boxes->size(1), static_cast<T>(ignore_threshold));
}

}  // namespace ssd_ops
