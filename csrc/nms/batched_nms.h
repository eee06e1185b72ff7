// batched_nms: nms within each class, all in one call.
//
//   boxes [N, 4] xyxy, any unit; scores [N]; idxs [N] int64, the class of each box, any numbers
//   -> kept [K] int64, by score descending, then index ascending
//
// As nms, but a box is dropped only because of boxes of its own class. Classes are compared; coordinates
// are never shifted, so any range of coordinates and of classes gives what nms gives for each class.
#pragma once

#include "nms/nms.h"

namespace ssd_ops {

inline void check_batched_nms(const Tensor& boxes,   // [N, 4]
                              const Tensor& scores,  // [N]
                              const Tensor& idxs,    // [N] int64
                              double iou_threshold, int64_t metric) {
  constexpr const char* op = "batched_nms";
  check_one_image(op, boxes, scores, iou_threshold, metric);
  check_shape(idxs.dim() == 1, op, "idxs", "[N]", idxs);
  if (idxs.size(0) != boxes.size(0))
    fail(op, "idxs must be [", boxes.size(0), "], as many as boxes, got ", shape_text(idxs));
  check_integer(op, "idxs", idxs);
  check_same_device(op, "idxs", idxs, "boxes", boxes);
}

}  // namespace ssd_ops
