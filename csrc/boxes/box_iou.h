// box_iou: intersection over union, or over the smaller area, of every pair of boxes.
//
//   boxes1 [..., N, 4], boxes2 [..., M, 4] xyxy, any unit, equal leading dimensions -> [..., N, M]
//
// metric: common/box.h, `Metric`. 0 where two boxes do not overlap or one has a NaN corner; never NaN
// (common/box.h, `overlap`).
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

inline void check_box_iou(const Tensor& boxes1,  // [..., N, 4]
                          const Tensor& boxes2,  // [..., M, 4]
                          int64_t metric) {
  constexpr const char* op = "box_iou";
  const int64_t rank = boxes1.dim();
  check_shape(rank >= 2 && boxes1.size(rank - 1) == 4, op, "boxes1", "[..., N, 4]", boxes1);
  check_shape(boxes2.dim() >= 2 && boxes2.size(boxes2.dim() - 1) == 4, op, "boxes2", "[..., M, 4]", boxes2);
  bool same = boxes2.dim() == rank;
  for (int64_t i = 0; same && i < rank - 2; ++i) same = boxes1.size(i) == boxes2.size(i);
  if (!same)
    fail(op, "boxes2 must have the leading dimensions of boxes1, ", shape_text(boxes1), ", got ",
         shape_text(boxes2));
  check_floating(op, "boxes1", boxes1);
  check_floating(op, "boxes2", boxes2);
  check_same_device(op, "boxes2", boxes2, "boxes1", boxes1);
  check_metric(op, metric);
}

// The result [..., N, M], not yet written.
template <typename T>
Tensor new_ious(const Tensor& boxes1,    // [..., N, 4]
                const Tensor& boxes2) {  // [..., M, 4]
  std::vector<int64_t> shape(boxes1.sizes().begin(), boxes1.sizes().end());
  shape.back() = boxes2.size(boxes2.dim() - 2);
  return new_real<T>(boxes1, shape);
}

}  // namespace ssd_ops
