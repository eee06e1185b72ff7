// multibox_target: what each anchor should predict, for a batch of images.
//
//   anchors [A, 4] or [1, A, 4] xyxy; labels [B, G, 5] rows (class, x1, y1, x2, y2)
//   -> offsets [B, 4A] and masks [B, 4A] of the arithmetic's dtype, cls_labels [B, A] int64
//
// A row is padding, and ignored, where its class is negative or NaN, a corner is not finite, or the
// corners are out of order. Unmatched anchors have offsets 0, masks 0 and class 0; matched ones the
// encoded box (eps 1e-6 in the logarithm), masks 1 and class + 1. An anchor without area, or not
// finite, matches nothing. More ground truths than anchors: the last of the order stay unmatched.
//
// semantics: 0 = d2l (the only one so far).
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

constexpr int64_t kSemanticsD2l = 0;
constexpr double kD2lEps = 1e-6;

inline void check_multibox_target(const Tensor& anchors, const Tensor& labels, double iou_threshold,
                                  const std::vector<double>& variances, int64_t semantics) {
  constexpr const char* op = "multibox_target";
  check_anchors(op, anchors);
  check_shape(labels.dim() == 3 && labels.size(2) == 5, op, "labels", "[B, G, 5]", labels);
  check_floating(op, "labels", labels);
  check_same_device(op, "labels", labels, "anchors", anchors);
  check_fraction(op, "iou_threshold", iou_threshold);
  check_variances(op, variances);
  if (semantics != kSemanticsD2l) fail(op, "semantics must be 0 (d2l), got ", semantics);
  if (labels.size(1) > std::numeric_limits<int32_t>::max())
    fail(op, "labels must be fewer than 2^31 per image, got ", labels.size(1));
}

}  // namespace ssd_ops
