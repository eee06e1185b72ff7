// encode_boxes: offsets of boxes to anchors (common/box.h, `encode`).
//
//   boxes [..., A, 4], anchors [A, 4] (or [1, A, 4], or the shape of boxes), both xyxy -> offsets, the
//   shape of boxes:
//   center    (dx / w / v0, dy / h / v1, log(eps + bw / w) / v2, log(eps + bh / h) / v3)
//   linear    (dx / w / v0, dy / h / v1, bw / w / v2, bh / h / v3)
//   distance  (left / w / v0, top / h / v1, right / w / v2, bottom / h / v3), from the anchor's center
//
// eps is 0 with linear and distance: neither has a logarithm.
// An anchor without area gives infinities or NaN, as the formula does.
#pragma once

#include "boxes/transform.h"

namespace ssd_ops {

inline void check_encode_boxes(const Tensor& boxes,    // [..., A, 4]
                               const Tensor& anchors,  // [A, 4]
                               const std::vector<double>& variances, double eps, int64_t coding) {
  constexpr const char* op = "encode_boxes";
  check_transform(op, "boxes", boxes, anchors);
  check_variances(op, variances);
  check_not_negative(op, "eps", eps);
  check_coding(op, coding);
  if (coding != static_cast<int64_t>(Coding::kCenter) && eps != 0)
    fail(op, "eps must be 0 with a coding other than 0 (center), got ", eps);
}

}  // namespace ssd_ops
