// assign_anchors as a Problem of matching.cuh.
#pragma once

#include "target/matching.cuh"

namespace ssd_ops {

template <typename Real>
struct AssignProblem {
  using T = Real;

  Input anchors, gt_boxes;  // [A, 4], [num_rows, 4]
  GtLayout layout;
  int64_t num_anchors, num_rows;
  MatchRules<T> rules;
  int64_t* matched_idxs;  // [B, A]
  T* matched_ious;        // [B, A]

  __device__ Box<T> anchor(int64_t i) const { return load_row<T>(anchors, i); }
  // As GtLayout::range: the offsets up to this one are compared by the lanes of a warp.
  __device__ GtRange range(int64_t image) const {
    if (layout.padded) return layout.range(image);
    int64_t begin = 0;
    for (int64_t at = lane_index(); at <= image; at += kWarp)
      begin = max_of(begin, min_of(layout.counts[at], layout.num_rows));
    begin = warp_greatest(begin);
    return {begin, cut_to(layout.counts[image + 1], begin, layout.num_rows)};
  }
  __device__ bool gt(int64_t row, Box<T>& box) const {
    box = load_row<T>(gt_boxes, row);
    return has_extent(box);
  }
  __device__ void write(int64_t image, GtRange, int64_t i, Box<T>, int matched, T iou) const {
    const int64_t at = image * num_anchors + i;
    matched_idxs[at] = matched == kNoGts ? kBackground : matched;
    matched_ious[at] = iou;
  }
  __device__ bool is_matched(int64_t at) const { return matched_idxs[at] >= 0; }
  __device__ void ignore(int64_t at) const { matched_idxs[at] = kBetween; }
};

}  // namespace ssd_ops
