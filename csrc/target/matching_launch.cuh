// The two launches of matching.cuh.
#pragma once

#include "common/launch.cuh"
#include "target/matching.cuh"

namespace ssd_ops {

template <typename Problem>
void launch_matching(Launcher& launcher, const char* op, const Problem& problem, int64_t num_images) {
  using T = typename Problem::T;
  if (num_images == 0 || problem.num_anchors == 0) return;
  if (problem.num_anchors > std::numeric_limits<int32_t>::max())
    fail(op, "anchors must be fewer than 2^31 on a GPU, got ", problem.num_anchors);
  MatchPlan<T> plan = {};
  const int64_t wanted = std::min(ceil_div(problem.num_anchors, kMatchThreads), kMaxTiles);
  plan.tile_size = ceil_div(ceil_div(problem.num_anchors, wanted), kMatchThreads) * kMatchThreads;
  plan.tiles = ceil_div(problem.num_anchors, plan.tile_size);
  const int64_t num_gts = problem.num_gts;
  plan.of_tiles = launcher.scratch<Match<T>>(num_images * plan.tiles * num_gts);
  launcher.run(&match_anchors<Problem>, num_images * plan.tiles, kMatchThreads, problem, plan);
  if (num_gts == 0) return;
  plan.of_image = launcher.scratch<Match<T>>(num_images * num_gts);
  plan.forced = launcher.scratch<int32_t>(2 * num_images * num_gts);
  plan.winner = plan.forced + num_images * num_gts;
  launcher.run(&force_matches<Problem>, num_images, kForceThreads, problem, plan);
}

}  // namespace ssd_ops
