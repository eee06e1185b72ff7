// assign_anchors: which ground truth each anchor of a batch of images stands for.
//
//   anchors [A, 4] or [1, A, 4] xyxy
//   gt_boxes [B, G, 4] xyxy with gt_counts [B] int64, or all G of each image where there are none; or
//   gt_boxes [N, 4] of all images with gt_counts [B + 1] int64, the row where each image begins, and N
//   ignore_boxes [B, K, 4] xyxy, or none (target/ignored.h)
//   -> matched_idxs [B, A] int64 (row of the image; -1 background, -2 between the thresholds or ignored),
//      matched_ious [B, A] of the arithmetic's dtype
//
// Counts and offsets are not read on the host: they are cut to 0..G, and to 0..N and at least the one before.
// A ground truth without extent, or with an infinite or NaN corner (common/box.h, `has_extent`), matches
// nothing. Neither does such an anchor, which is -1 with IoU 0. In an image without a ground truth that can
// match, every anchor is -1 with IoU 0, or -2 with IoU 0 where it is ignored.
//
// Otherwise, in this order:
// 1. An anchor's best ground truth has the highest IoU, the lowest row on ties. With an IoU of at least
//    iou_threshold it is the anchor's; else the anchor is -1 where the IoU is less than
//    background_threshold, and -2 where not. Thresholds are rounded to the arithmetic's dtype.
// 2. force_match overwrites:
//    none         nothing.
//    bipartite    of all free pairs, the one with the highest IoU (then lowest anchor, then lowest ground
//                 truth) is matched, whatever its IoU, until anchors or ground truths are used up.
//    argmax       each ground truth, in the order of the rows, takes its best anchor (the lowest on ties),
//                 whatever the IoU: a later one takes an anchor from an earlier one.
//    low_quality  every anchor whose IoU with some ground truth equals the highest that ground truth has
//                 with any anchor, and is more than 0, gets its own best ground truth of step 1.
// 3. An anchor without a match that an ignore box covers is -2.
//
// matched_ious is the IoU with the ground truth matched, or with the best one for an anchor without a match.
#pragma once

#include <optional>

#include "common/tensor.h"
#include "target/ignored.h"
#include "target/rules.h"

namespace ssd_ops {

inline void check_assign_anchors(const Tensor& anchors,                   // [A, 4] or [1, A, 4]
                                 const Tensor& gt_boxes,                  // [B, G, 4] or [N, 4]
                                 const std::optional<Tensor>& gt_counts,  // [B] or [B + 1] int64
                                 double iou_threshold, double background_threshold, int64_t force_match,
                                 const std::optional<Tensor>& ignore_boxes,  // [B, K, 4]
                                 double ignore_threshold) {
  constexpr const char* op = "assign_anchors";
  check_anchors(op, anchors);
  const bool padded = gt_boxes.dim() == 3;
  check_shape((padded || gt_boxes.dim() == 2) && gt_boxes.size(gt_boxes.dim() - 1) == 4, op, "gt_boxes",
              "[B, G, 4], or [N, 4] with offsets", gt_boxes);
  check_floating(op, "gt_boxes", gt_boxes);
  check_same_device(op, "gt_boxes", gt_boxes, "anchors", anchors);
  if (gt_boxes.size(padded ? 1 : 0) > std::numeric_limits<int32_t>::max())
    fail(op, "gt_boxes must be fewer than 2^31, got ", gt_boxes.size(padded ? 1 : 0));
  if (gt_counts) {
    if (padded)
      check_shape(gt_counts->dim() == 1 && gt_counts->size(0) == gt_boxes.size(0), op, "gt_counts",
                  "[B], as many as gt_boxes has images", *gt_counts);
    else
      check_shape(gt_counts->dim() == 1 && gt_counts->size(0) >= 1, op, "gt_counts",
                  "offsets [B + 1] for gt_boxes [N, 4]", *gt_counts);
    check_integer(op, "gt_counts", *gt_counts);
    check_same_device(op, "gt_counts", *gt_counts, "anchors", anchors);
  } else if (!padded) {
    fail(op, "gt_counts must be offsets [B + 1] for gt_boxes [N, 4], got none");
  }
  check_fraction(op, "iou_threshold", iou_threshold);
  if (!(background_threshold >= 0 && background_threshold <= iou_threshold))
    fail(op, "background_threshold must be in 0..iou_threshold, got ", background_threshold);
  if (!is_value_of(force_match, Force::kLowQuality))
    fail(op, "force_match must be 0 (none), 1 (bipartite), 2 (argmax) or 3 (low_quality), got ", force_match);
  check_ignore_boxes(op, ignore_boxes, ignore_threshold, padded ? gt_boxes.size(0) : gt_counts->size(0) - 1,
                     anchors);
}

inline GtLayout gt_layout(const Tensor& gt_boxes,                    // [B, G, 4] or [N, 4]
                          const std::optional<Tensor>& gt_counts) {  // [B] or [B + 1] int64, contiguous
  const bool padded = gt_boxes.dim() == 3;
  return {padded ? gt_boxes.size(0) : gt_counts->size(0) - 1, gt_boxes.size(padded ? 1 : 0), padded,
          gt_counts ? const_data<int64_t>(*gt_counts) : nullptr};
}

}  // namespace ssd_ops
