// multibox_target as a Problem of matching.cuh.
#pragma once

#include "target/ground_truth.h"
#include "target/matching.cuh"

namespace ssd_ops {

template <typename Real>
struct TargetProblem {
  using T = Real;

  Input anchors, labels;
  int64_t num_anchors, num_gts;
  T iou_threshold, min_forced_iou;
  Variances<T> variances;
  T eps;
  T *offsets, *masks;
  int64_t* row_values;  // cls_labels

  __device__ Box<T> anchor(int64_t i) const { return load_row<T>(anchors, i); }

  __device__ T cls(int64_t image, int64_t g) const { return load<T>(labels, (image * num_gts + g) * 5); }

  __device__ bool gt(int64_t image, int64_t g, Box<T>& box) const {
    const int64_t at = (image * num_gts + g) * 5;
    box = {load<T>(labels, at + 1), load<T>(labels, at + 2), load<T>(labels, at + 3), load<T>(labels, at + 4)};
    return is_ground_truth(load<T>(labels, at), box);
  }

  __device__ int64_t decide(int64_t image, T iou, int64_t g) const {
    if (!(iou >= iou_threshold)) return -1;
    if (g >= 0) return g;
    // Only with the threshold 0: an anchor that overlaps nothing takes the first ground truth.
    Box<T> box;
    for (g = 0; g < num_gts; ++g)
      if (gt(image, g, box)) return g;
    return -1;
  }

  __device__ void write(int64_t image, int64_t i, Box<T> anchor_box, int64_t matched, T) const {
    const int64_t row = image * num_anchors + i;
    Box<T> offset{0, 0, 0, 0}, mask{0, 0, 0, 0};
    int64_t label = 0;
    if (matched >= 0) {
      Box<T> box;
      gt(image, matched, box);
      const Offset<T> o = encode(box, anchor_box, variances, eps);
      offset = {o.x, o.y, o.w, o.h};
      mask = {1, 1, 1, 1};
      label = static_cast<int64_t>(cls(image, matched)) + 1;
    }
    store_row(offsets, row, offset);
    store_row(masks, row, mask);
    row_values[row] = label;
  }
};

}  // namespace ssd_ops
