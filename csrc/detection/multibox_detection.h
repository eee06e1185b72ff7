// multibox_detection: decoded, suppressed and labelled boxes of a batch, one row for every anchor.
//
//   cls_probs [B, C+1, A] with the background first, offset_preds [B, 4A], anchors [A, 4] or [1, A, 4]
//   -> [B, A, 6] rows (class, score, x1, y1, x2, y2) of the arithmetic's dtype
//
// As in "Dive into Deep Learning": each anchor has its best class that is not background (the first on
// ties); NMS over all anchors, whatever their class, drops IoU > nms_threshold; rows are the kept ones by
// score, then the others by anchor, whose class is -1; a score below pos_threshold makes the class -1
// and the score 1 - score. Thresholds are rounded to the dtype, as comparing with a tensor does.
// A NaN probability counts as 0. Equal scores go to the lower anchor.
//
// semantics: 0 = d2l (the only one so far).
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

inline void check_multibox_detection(const Tensor& cls_probs, const Tensor& offset_preds,
                                     const Tensor& anchors, double nms_threshold, double pos_threshold,
                                     const std::vector<double>& variances, int64_t semantics) {
  constexpr const char* op = "multibox_detection";
  check_shape(cls_probs.dim() == 3 && cls_probs.size(1) >= 2, op, "cls_probs",
              "[B, C+1, A] with C at least 1", cls_probs);
  check_anchors(op, anchors);
  const int64_t num_images = cls_probs.size(0), num_anchors = cls_probs.size(2);
  if (anchors.numel() != 4 * num_anchors)
    fail(op, "anchors must be [", num_anchors, ", 4], as many as cls_probs has, got ", shape_text(anchors));
  if (offset_preds.dim() != 2 || offset_preds.size(0) != num_images ||
      offset_preds.size(1) != 4 * num_anchors)
    fail(op, "offset_preds must be [", num_images, ", ", 4 * num_anchors, "], got ",
         shape_text(offset_preds));
  check_floating(op, "cls_probs", cls_probs);
  check_floating(op, "offset_preds", offset_preds);
  check_same_device(op, "offset_preds", offset_preds, "cls_probs", cls_probs);
  check_same_device(op, "anchors", anchors, "cls_probs", cls_probs);
  check_fraction(op, "nms_threshold", nms_threshold);
  check_fraction(op, "pos_threshold", pos_threshold);
  check_variances(op, variances);
  if (semantics != 0) fail(op, "semantics must be 0 (d2l), got ", semantics);
}

}  // namespace ssd_ops
