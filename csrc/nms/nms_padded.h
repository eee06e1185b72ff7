// nms_padded: nms of a batch, in a shape that does not depend on the boxes.
//
//   boxes [B, N, 4] xyxy, any unit; scores [B, N] -> indices [B, N] int64, counts [B] int64
//
// Row b holds what nms returns for image b, then -1; counts[b] says how many boxes that is.
#pragma once

#include "nms/nms.h"

namespace ssd_ops {

inline void check_nms_padded(const Tensor& boxes,   // [B, N, 4]
                             const Tensor& scores,  // [B, N]
                             double iou_threshold, int64_t metric) {
  constexpr const char* op = "nms_padded";
  check_shape(boxes.dim() == 3 && boxes.size(2) == 4, op, "boxes", "[B, N, 4]", boxes);
  check_shape(scores.dim() == 2, op, "scores", "[B, N]", scores);
  if (scores.size(0) != boxes.size(0) || scores.size(1) != boxes.size(1))
    fail(op, "scores must be [", boxes.size(0), ", ", boxes.size(1), "], one a box, got ",
         shape_text(scores));
  check_values(op, boxes, scores, iou_threshold, metric);
}

}  // namespace ssd_ops
