// detect: from the heads of a detector to its best boxes, for a batch of images. Fixed sizes, padded.
//
//   cls_scores [B, A, C+1] logits, the background first (softmax), or [B, A, C] (sigmoid: logits; none:
//   scores); offset_preds [B, A, 4] or [B, 4A]; anchors [A, 4] or [1, A, 4] xyxy
//   -> boxes [B, K, 4] and scores [B, K] of the arithmetic's dtype, labels [B, K], indices [B, K] (the
//      anchor) and counts [B] int64, with K = max_detections
//
// multiclass_nms (detection/multiclass_nms.h) of the activated scores (common/activation.h) and the decoded
// boxes (decode_boxes: its variances, clip, coding and max_log_size), in the arithmetic's dtype. Only candidates are
// decoded. With softmax, class 0 of the result is the second of cls_scores, and an anchor with a NaN
// logit is left out.
#pragma once

#include "common/activation.h"
#include "detection/multiclass_nms.h"

namespace ssd_ops {

inline void check_detect(const Tensor& cls_scores,    // [B, A, C+1] or [B, A, C]
                         const Tensor& offset_preds,  // [B, A, 4] or [B, 4A]
                         const Tensor& anchors,       // [A, 4] or [1, A, 4]
                         int64_t activation, double score_threshold, double iou_threshold, int64_t topk,
                         int64_t max_detections, const std::vector<double>& variances,
                         const std::vector<double>& clip, int64_t metric, int64_t coding, double max_log_size,
                         const std::vector<int64_t>& level_counts, int64_t topk_per_level) {
  constexpr const char* op = "detect";
  if (!is_value_of(activation, Activation::kSigmoid))
    fail(op, "activation must be 0 (none), 1 (softmax) or 2 (sigmoid), got ", activation);
  if (static_cast<Activation>(activation) == Activation::kSoftmax)
    check_shape(cls_scores.dim() == 3 && cls_scores.size(2) >= 2, op, "cls_scores",
                "[B, A, C+1] with C at least 1", cls_scores);
  else
    check_shape(cls_scores.dim() == 3, op, "cls_scores", "[B, A, C]", cls_scores);
  check_anchors(op, anchors);
  const int64_t num_images = cls_scores.size(0), num_anchors = cls_scores.size(1);
  check_anchor_count(op, anchors, num_anchors, "cls_scores");
  const bool rows =
      offset_preds.dim() == 3 && offset_preds.size(1) == num_anchors && offset_preds.size(2) == 4;
  const bool flat = offset_preds.dim() == 2 && offset_preds.size(1) == 4 * num_anchors;
  if (!(rows || flat) || offset_preds.size(0) != num_images)
    fail(op, "offset_preds must be [", num_images, ", ", num_anchors, ", 4] or [", num_images, ", ",
         4 * num_anchors, "], got ", shape_text(offset_preds));
  check_floating(op, "cls_scores", cls_scores);
  check_floating(op, "offset_preds", offset_preds);
  check_same_device(op, "offset_preds", offset_preds, "cls_scores", cls_scores);
  check_same_device(op, "anchors", anchors, "cls_scores", cls_scores);
  check_selection(op, score_threshold, iou_threshold, topk, max_detections, metric, num_anchors, level_counts,
                  topk_per_level);
  check_decoding(op, variances, clip, coding, max_log_size);
}

}  // namespace ssd_ops
