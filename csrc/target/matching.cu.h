// The two launches of a match: matching.cuh, then where matches are forced.
#pragma once

#include "common/launch.cu.h"
#include "target/forced_match.cuh"
#include "target/matching.cuh"

namespace ssd_ops {

template <typename Problem>
void launch_matching(Launcher& launcher, const Problem& problem, int64_t num_images) {
  using T = typename Problem::T;
  if (num_images == 0 || problem.num_anchors == 0) return;
  if (problem.num_anchors > std::numeric_limits<int32_t>::max())
    launcher.fail("anchors must be fewer than 2^31 on a GPU, got ", problem.num_anchors);
  MatchPlan<T> plan = {};
  const int64_t wanted = std::min(ceil_div(problem.num_anchors, kMatchThreads), kMaxTiles);
  plan.tile_size = ceil_div(ceil_div(problem.num_anchors, wanted), kMatchThreads) * kMatchThreads;
  plan.tiles = ceil_div(problem.num_anchors, plan.tile_size);
  const int64_t num_rows = problem.num_rows, blocks = num_images * plan.tiles;
  plan.of_tiles = launcher.scratch<Match<T>>(plan.tiles * num_rows);
  const auto threads_for = [](int64_t items, int64_t most) {
    return static_cast<int>(std::min(ceil_div(std::max<int64_t>(items, 1), kWarp) * kWarp, most));
  };
  const int threads = threads_for(problem.num_anchors, kMatchThreads);
  launcher.run(&match_anchors<false, Problem>, blocks, threads, problem, plan);
  if (num_rows == 0 || problem.rules.force == Force::kNone) return;
  if (problem.rules.force == Force::kLowQuality) {
    launcher.run(&match_anchors<true, Problem>, blocks, threads, problem, plan);
    return;
  }
  plan.best = launcher.scratch<Match<T>>(num_rows);
  plan.forced = launcher.scratch<int32_t>(2 * num_rows);
  plan.winner = plan.forced + num_rows;
  launcher.run(problem.rules.force == Force::kArgmax ? &force_argmax<Problem> : &force_bipartite<Problem>,
               num_images, threads_for(kWarp * ceil_div(num_rows, num_images), kForceThreads), problem, plan);
}

}  // namespace ssd_ops
