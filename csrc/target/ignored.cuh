// Regions to ignore (ignored.h), after the match.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

constexpr int kIgnoreThreads = 256;

// A thread for each anchor. The boxes of an image are few, and a warp reads each of them at once. Of a Problem
// (matching.cuh) it needs:
//   T, num_anchors, Box<T> anchor(i)
//   bool is_matched(at), void ignore(at): of the output, at = image * num_anchors + i
template <typename Problem>
__global__ void __launch_bounds__(kIgnoreThreads)
    ignore_anchors(Problem problem, unsigned blocks,  // of an image
                   Input boxes,                       // [B, num_boxes, 4]
                   int64_t num_boxes, typename Problem::T share) {
  using T = typename Problem::T;
  const unsigned image = blockIdx.x / blocks, i = blockIdx.x % blocks * kIgnoreThreads + threadIdx.x;
  const int64_t at = image * problem.num_anchors + i;
  if (i >= problem.num_anchors || problem.is_matched(at)) return;
  const Box<T> anchor = problem.anchor(i);
  if (!has_extent(anchor)) return;
  const T anchor_area = area(anchor);
  bool covered = false;
  for (int64_t row = image * num_boxes; row < (image + 1) * num_boxes; ++row) {
    const Box<T> region = load_row<T>(boxes, row);
    covered = covered || (has_extent(region) && lies_in(anchor, anchor_area, region, share));
  }
  if (covered) problem.ignore(at);
}

}  // namespace ssd_ops
