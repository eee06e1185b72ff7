// multiclass_nms: the best boxes of a batch of images after NMS within each class. Fixed sizes, padded.
//
//   boxes [B, N, 4] xyxy, any unit; scores [B, N, C]
//   -> boxes [B, K, 4] and scores [B, K] of the arithmetic's dtype, labels [B, K], indices [B, K] and
//      counts [B] int64, with K = max_detections
//
// In each image:
// 1. A pair (box, class) is a candidate where its score > score_threshold, which is rounded to the
//    arithmetic's dtype. A NaN score is not.
//    best_class_only: only with the class of its highest score, the lowest class on ties; NaN scores do
//    not count.
// 2. Where topk_per_level is not -1, level_counts divides the boxes, in their order, into levels: of each
//    level, only the topk_per_level candidates that come first stay (score descending, then class, then box).
// 3. Of each class, only the topk with the highest score stay, equal scores by box; -1: all.
// 4. Greedy NMS in the order score descending, then class, then box ascending: a candidate is dropped
//    where its overlap with a kept one of its class (class_agnostic: of any class) is more than
//    iou_threshold, by the metric and compared as in nms.
// 5. The first max_detections kept, in that order, are the result: box, score, class (0-based), row of
//    `boxes`. What follows them is 0, 0, -1, -1; counts tells how many they are.
#pragma once

#include <tuple>

#include "common/tensor.h"
#include "detection/detections.h"

namespace ssd_ops {

// The arguments that multiclass_nms and detect share.
inline void check_selection(const char* op, double score_threshold, double iou_threshold, int64_t topk,
                            int64_t max_detections, int64_t metric, int64_t num_boxes,
                            const std::vector<int64_t>& level_counts, int64_t topk_per_level) {
  check_fraction(op, "score_threshold", score_threshold);
  check_fraction(op, "iou_threshold", iou_threshold);
  check_topk(op, topk);
  if (max_detections < 1) fail(op, "max_detections must be 1 or more, got ", max_detections);
  check_metric(op, metric);
  if (topk_per_level < 1 && topk_per_level != -1)
    fail(op, "topk_per_level must be 1 or more, or -1 for all, got ", topk_per_level);
  if (topk_per_level == -1) return;
  int64_t left = num_boxes;
  for (const int64_t count : level_counts) {
    check_not_negative(op, "level_counts", count);
    if (count > left) left = -1;  // the sum is too large, and could overflow
    if (left < 0) break;
    left -= count;
  }
  if (left != 0) fail(op, "level_counts must add up to the number of boxes, ", num_boxes);
}

inline void check_multiclass_nms(const Tensor& boxes,   // [B, N, 4]
                                 const Tensor& scores,  // [B, N, C]
                                 double score_threshold, double iou_threshold, int64_t topk,
                                 int64_t max_detections, int64_t metric,
                                 const std::vector<int64_t>& level_counts, int64_t topk_per_level) {
  constexpr const char* op = "multiclass_nms";
  check_shape(boxes.dim() == 3 && boxes.size(2) == 4, op, "boxes", "[B, N, 4]", boxes);
  check_shape(scores.dim() == 3 && scores.size(0) == boxes.size(0) && scores.size(1) == boxes.size(1), op,
              "scores", "[B, N, C] with the B and N of boxes", scores);
  check_floating(op, "boxes", boxes);
  check_floating(op, "scores", scores);
  check_same_device(op, "scores", scores, "boxes", boxes);
  check_selection(op, score_threshold, iou_threshold, topk, max_detections, metric, boxes.size(1),
                  level_counts, topk_per_level);
}

// boxes, scores, labels, indices, counts
using Detections = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The five results of multiclass_nms and detect, to be written.
template <typename T>
class DetectionTensors {
 public:
  DetectionTensors(const Tensor& like, int64_t num_images, int64_t max_detections)
      : max_detections_(max_detections),
        boxes_(new_real<T>(like, {num_images, max_detections, 4})),
        scores_(new_real<T>(like, {num_images, max_detections})),
        labels_(new_integers(like, {num_images, max_detections})),
        indices_(new_integers(like, {num_images, max_detections})),
        counts_(new_integers(like, {num_images})),
        first_{data<T>(boxes_), data<T>(scores_), data<int64_t>(labels_), data<int64_t>(indices_),
               data<int64_t>(counts_)} {}

  DetectionRows<T> rows(int64_t image) const {
    const int64_t row = image * max_detections_;
    return {first_.boxes + 4 * row, first_.scores + row, first_.labels + row, first_.indices + row,
            first_.count + image};
  }

  Detections tensors() const { return {boxes_, scores_, labels_, indices_, counts_}; }

 private:
  int64_t max_detections_;
  Tensor boxes_, scores_, labels_, indices_, counts_;
  DetectionRows<T> first_;
};

}  // namespace ssd_ops
