// multibox_target: what each anchor should predict, for a batch of images.
//
//   anchors [A, 4] or [1, A, 4] xyxy; labels [B, G, 5] rows (class, x1, y1, x2, y2);
//   cls_preds [B, C+1, A] logits, the background first, or none: read only where negatives are mined;
//   ignore_boxes [B, K, 4] xyxy, or none (target/ignored.h)
//   -> offsets [B, 4A] and masks [B, 4A] of the arithmetic's dtype, cls_labels [B, A] int64
//
// coding: the numbers of `Coding` (common/box.h), as in encode_boxes.
//
// A row is padding, and ignored, where its class is negative, 2^60 or more, or NaN, a corner is not
// finite, or the corners are out of order (torchvision: or it has no area). A matched anchor has the
// encoded box, masks 1 and class + 1; any other offsets 0, masks 0 and class 0. An anchor without area, or
// not finite, matches nothing. An anchor without a match that an ignore box covers has ignore_label and is
// never mined. Thresholds are rounded to the arithmetic's dtype.
//
// d2l          An anchor takes its best ground truth (highest IoU, lowest row on ties) if IoU >=
//              iou_threshold; then the forced match overwrites: of all free pairs the one with the highest
//              IoU (then lowest anchor, then lowest row), whatever it is, until one side is used up.
//              1e-6 is added inside the logarithm of the offsets, which only coding center has.
// mxnet        The forced match first, only while the IoU is more than 1e-6; then each anchor it has not
//              taken gets its best ground truth of all if IoU > iou_threshold, and iou_threshold > 0.
//              In an image without ground truths every class is ignore_label.
// torchvision  As d2l, but each ground truth in the order of the rows takes its best anchor (the lowest on
//              ties), whatever the IoU, and a later one takes it from an earlier one.
//
// negative_mining_ratio >= 0 (-1: off, and cls_preds is not read) leaves class 0 only to the negatives
// chosen: of the unmatched anchors whose highest IoU with any ground truth is less than
// negative_mining_threshold, max(floor(ratio * matched), min_negatives), or all there are, with the lowest
// probability of background (softmax of cls_preds over the classes, common/activation.h); a NaN counts as
// the lowest, equal ones go to the lower anchor. ratio * matched is taken in float32, as MXNet does. The
// other unmatched anchors get ignore_label.
#pragma once

#include <optional>
#include <tuple>

#include "common/semantics.h"
#include "common/tensor.h"
#include "target/ignored.h"

namespace ssd_ops {

using Targets = std::tuple<Tensor, Tensor, Tensor>;  // offsets, masks, cls_labels

inline void check_multibox_target(const Tensor& anchors,                   // [A, 4] or [1, A, 4]
                                  const Tensor& labels,                    // [B, G, 5]
                                  const std::optional<Tensor>& cls_preds,  // [B, C+1, A]
                                  double iou_threshold, const std::vector<double>& variances,
                                  double negative_mining_ratio, double negative_mining_threshold,
                                  int64_t min_negatives, int64_t semantics, int64_t coding,
                                  const std::optional<Tensor>& ignore_boxes,  // [B, K, 4]
                                  double ignore_threshold) {
  constexpr const char* op = "multibox_target";
  check_anchors(op, anchors);
  check_shape(labels.dim() == 3 && labels.size(2) == 5, op, "labels", "[B, G, 5]", labels);
  check_floating(op, "labels", labels);
  check_same_device(op, "labels", labels, "anchors", anchors);
  const int64_t num_anchors = anchors.numel() / 4;
  if (cls_preds) {
    if (cls_preds->dim() != 3 || cls_preds->size(0) != labels.size(0) || cls_preds->size(1) < 1 ||
        cls_preds->size(2) != num_anchors)
      fail(op, "cls_preds must be [", labels.size(0), ", C+1, ", num_anchors, "], got ",
           shape_text(*cls_preds));
    check_floating(op, "cls_preds", *cls_preds);
    check_same_device(op, "cls_preds", *cls_preds, "anchors", anchors);
  }
  check_fraction(op, "iou_threshold", iou_threshold);
  check_variances(op, variances);
  if (negative_mining_ratio != -1) {
    check_not_negative(op, "negative_mining_ratio", negative_mining_ratio);
    if (!cls_preds) fail(op, "cls_preds must be given for negative_mining_ratio, got none");
  }
  check_fraction(op, "negative_mining_threshold", negative_mining_threshold);
  check_not_negative(op, "min_negatives", min_negatives);
  if (!is_value_of(semantics, Semantics::kTorchvision))
    fail(op, "semantics must be 0 (d2l), 1 (mxnet) or 2 (torchvision), got ", semantics);
  check_coding(op, coding);
  if (labels.size(1) > std::numeric_limits<int32_t>::max())
    fail(op, "labels must be fewer than 2^31 per image, got ", labels.size(1));
  check_ignore_boxes(op, ignore_boxes, ignore_threshold, labels.size(0), anchors);
}

}  // namespace ssd_ops
