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
  int64_t* row_values;  // [B, A]: matched_idxs
  T* matched_ious;      // [B, A]

  __device__ Box<T> anchor(int64_t i) const { return load_row<T>(anchors, i); }
  __device__ GtRange range(int64_t image) const { return layout.range(image); }
  __device__ bool gt(int64_t row, Box<T>& box) const {
    box = load_row<T>(gt_boxes, row);
    return has_extent(box);
  }
  __device__ void write(int64_t image, int64_t i, Box<T>, int64_t matched, T iou) const {
    const int64_t at = image * num_anchors + i;
    row_values[at] =
        matched >= 0 ? matched - range(image).begin : (matched == kNoGts ? kBackground : matched);
    matched_ious[at] = iou;
  }
};

}  // namespace ssd_ops
