// nms: indices of the boxes kept by greedy non-maximum suppression.
//
//   boxes [N, 4] xyxy, any unit; scores [N] -> kept [K] int64, by score descending, then index ascending
//
// A box is dropped where its IoU with a kept box of higher order is greater than iou_threshold, or its
// score is NaN. The IoU, a float32, is compared with the threshold as it was given, a float64: both
// stand for exact numbers (torchvision's CPU kernel does the same; its CUDA kernel rounds the threshold).
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

// What nms and batched_nms share.
inline void check_nms_of(const char* op, const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_shape(boxes.dim() == 2 && boxes.size(1) == 4, op, "boxes", "[N, 4]", boxes);
  check_shape(scores.dim() == 1, op, "scores", "[N]", scores);
  if (scores.size(0) != boxes.size(0))
    fail(op, "scores must be [", boxes.size(0), "], as many as boxes, got ", shape_text(scores));
  check_floating(op, "boxes", boxes);
  check_floating(op, "scores", scores);
  check_same_device(op, "scores", scores, "boxes", boxes);
  check_fraction(op, "iou_threshold", iou_threshold);
}

inline void check_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms_of("nms", boxes, scores, iou_threshold);
}

// The greatest T not above the threshold: for an IoU in T, iou > threshold exactly if iou > this.
template <typename T>
T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, T(-1)) : nearest;
}

}  // namespace ssd_ops
