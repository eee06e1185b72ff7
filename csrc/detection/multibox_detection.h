// multibox_detection: decoded, suppressed and labelled boxes of a batch, one row for every anchor.
//
//   cls_probs [B, C+1, A] with the background first, offset_preds [B, 4A], anchors [A, 4] or [1, A, 4]
//   -> [B, A, 6] rows (class, score, x1, y1, x2, y2) of the arithmetic's dtype
//
// Boxes are decoded, and with clip cut to 0..1. Each anchor has its best class that is not background
// (the first on ties). Thresholds are rounded to the dtype, as comparing with a tensor does. Equal
// scores go to the lower anchor. With class_agnostic, NMS compares boxes of all classes, otherwise only
// boxes of one class. topk, where it is not -1, leaves so many of the highest scores to NMS.
//
// d2l    ("Dive into Deep Learning") A NaN probability counts as 0. NMS over all anchors, or the topk,
//        drops IoU > nms_threshold. Rows: the kept ones by score, then all others by anchor with class
//        -1. In either, a score below pos_threshold makes the class -1 and the score 1 - score.
// mxnet  (its CPU path) A NaN probability, or one of -1 or less, is never the best. Anchors with a best
//        class and a score not below pos_threshold survive; they alone fill the first rows, all others
//        are -1. Rows are in the order of the scores, and NMS makes the class of a row -1 where the IoU
//        with a kept one before it is nms_threshold or more; score and box remain, and the row stays.
//        With topk below the number of survivors n, the rows topk..n-1 hold the survivors number
//        topk..n-1 by anchor, with class -1, as MXNet leaves them. nms_threshold 0: no NMS, no topk, and
//        the survivors stand in the order of the anchors.
#pragma once

#include "common/semantics.h"
#include "common/tensor.h"

namespace ssd_ops {

// What the other ops call clip: height and width, or zeros.
inline std::vector<double> to_limits(bool clip) {
  const double limit = clip ? 1 : 0;
  return {limit, limit};
}

inline void check_multibox_detection(const Tensor& cls_probs,     // [B, C+1, A]
                                     const Tensor& offset_preds,  // [B, 4A]
                                     const Tensor& anchors,       // [A, 4] or [1, A, 4]
                                     double nms_threshold, double pos_threshold,
                                     const std::vector<double>& variances, int64_t topk, int64_t semantics) {
  constexpr const char* op = "multibox_detection";
  check_shape(cls_probs.dim() == 3 && cls_probs.size(1) >= 2, op, "cls_probs",
              "[B, C+1, A] with C at least 1", cls_probs);
  check_anchors(op, anchors);
  const int64_t num_images = cls_probs.size(0), num_anchors = cls_probs.size(2);
  check_anchor_count(op, anchors, num_anchors, "cls_probs");
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
  check_topk(op, topk);
  if (!is_value_of(semantics, Semantics::kMxnet))
    fail(op, "semantics must be 0 (d2l) or 1 (mxnet), got ", semantics);
}

}  // namespace ssd_ops
