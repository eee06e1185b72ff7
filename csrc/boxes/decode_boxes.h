// decode_boxes: the boxes that offsets to anchors stand for (common/box.h, `decode`).
//
//   offsets [..., A, 4], anchors [A, 4] (or [1, A, 4], or the shape of offsets) xyxy -> boxes xyxy, the
//   shape of offsets; clipped to 0..width and 0..height with clip = [height, width], not with zeros.
//
// coding: the numbers of `Coding`. max_log_size bounds log of the size ratio before exp, as torchvision's
// bbox_xform_clip; -1: no bound, as with every coding but center. NaN stays NaN.
// torch's AOTInductor takes neither an empty list nor infinity for an argument.
#pragma once

#include "boxes/transform.h"

namespace ssd_ops {

inline void check_decode_boxes(const Tensor& offsets,  // [..., A, 4]
                               const Tensor& anchors,  // [A, 4]
                               const std::vector<double>& variances, const std::vector<double>& clip,
                               int64_t coding, double max_log_size) {
  check_transform("decode_boxes", "offsets", offsets, anchors);
  check_decoding("decode_boxes", variances, clip, coding, max_log_size);
}

}  // namespace ssd_ops
