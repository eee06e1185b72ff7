// decode_boxes: the boxes that offsets to anchors stand for (common/box.h, `decode`).
//
//   offsets [..., A, 4], anchors [A, 4] (or [1, A, 4], or the shape of offsets) xyxy -> boxes xyxy, the
//   shape of offsets; with clip, to 0..1.
#pragma once

#include "boxes/transform.h"

namespace ssd_ops {

inline void check_decode_boxes(const Tensor& offsets,  // [..., A, 4]
                               const Tensor& anchors,  // [A, 4]
                               const std::vector<double>& variances) {
  check_transform("decode_boxes", "offsets", offsets, anchors, variances);
}

}  // namespace ssd_ops
