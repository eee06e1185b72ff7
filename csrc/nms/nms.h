// nms: indices of the boxes kept by greedy non-maximum suppression.
//
//   boxes [N, 4] xyxy, any unit; scores [N] -> kept [K] int64, by score descending, then index ascending
//
// A box is dropped where its overlap with a kept box before it is greater than iou_threshold, or its score is
// NaN. metric says what overlap is: IoU or IoS (common/box.h, `Metric`). It, a float32, is compared with the
// threshold as it was given, a float64: both stand for exact numbers (torchvision's CPU kernel does the same;
// its CUDA kernel rounds the threshold).
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

// What the three ops of this room share, beside the shapes.
inline void check_values(const char* op, const Tensor& boxes, const Tensor& scores, double iou_threshold,
                         int64_t metric) {
  check_floating(op, "boxes", boxes);
  check_floating(op, "scores", scores);
  check_same_device(op, "scores", scores, "boxes", boxes);
  check_fraction(op, "iou_threshold", iou_threshold);
  check_metric(op, metric);
}

// What nms and batched_nms share.
inline void check_one_image(const char* op,
                            const Tensor& boxes,   // [N, 4]
                            const Tensor& scores,  // [N]
                            double iou_threshold, int64_t metric) {
  check_shape(boxes.dim() == 2 && boxes.size(1) == 4, op, "boxes", "[N, 4]", boxes);
  check_shape(scores.dim() == 1, op, "scores", "[N]", scores);
  if (scores.size(0) != boxes.size(0))
    fail(op, "scores must be [", boxes.size(0), "], as many as boxes, got ", shape_text(scores));
  check_values(op, boxes, scores, iou_threshold, metric);
}

inline void check_nms(const Tensor& boxes,   // [N, 4]
                      const Tensor& scores,  // [N]
                      double iou_threshold, int64_t metric) {
  check_one_image("nms", boxes, scores, iou_threshold, metric);
}

}  // namespace ssd_ops
