// encode_boxes: center-size offsets of boxes to anchors (common/box.h, `encode`).
//
//   boxes [..., A, 4], anchors [A, 4] (or [1, A, 4], or the shape of boxes), both xyxy -> offsets, the
//   shape of boxes: (dx / w / v0, dy / h / v1, log(eps + bw / w) / v2, log(eps + bh / h) / v3).
//
// An anchor without area gives infinities or NaN, as the formula does.
#pragma once

#include "boxes/transform.h"

namespace ssd_ops {

inline void check_encode_boxes(const Tensor& boxes,    // [..., A, 4]
                               const Tensor& anchors,  // [A, 4]
                               const std::vector<double>& variances, double eps) {
  check_transform("encode_boxes", "boxes", boxes, anchors, variances);
  check_not_negative("encode_boxes", "eps", eps);
}

}  // namespace ssd_ops
