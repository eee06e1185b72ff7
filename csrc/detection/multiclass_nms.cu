#include "detection/multiclass_nms.cuh"
#include "detection/multiclass_nms.h"
#include "detection/selection.cu.h"

namespace ssd_ops {
namespace {

Detections multiclass_nms_cuda(const Tensor& boxes,   // [B, N, 4]
                               const Tensor& scores,  // [B, N, C]
                               double score_threshold, double iou_threshold, int64_t topk,
                               int64_t max_detections, bool class_agnostic, int64_t metric,
                               bool best_class_only, std::vector<int64_t> level_counts,
                               int64_t topk_per_level) {
  check_multiclass_nms(boxes, scores, score_threshold, iou_threshold, topk, max_detections, metric,
                       level_counts, topk_per_level);
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1);
  Launcher launcher("multiclass_nms", boxes);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const DeviceInput box_input(boxes), score_input(scores);
        const SelectionRules<T> rules(score_threshold, iou_threshold, topk, max_detections, class_agnostic,
                                      metric, {best_class_only, level_counts, topk_per_level});
        const ClassScores<T, Activation::kNone> by_class{score_input, num_boxes, scores.size(2), nullptr,
                                                         nullptr};
        return launch_selection(launcher, boxes, by_class, BoxRows<T>{box_input, num_boxes}, num_images,
                                rules);
      },
      boxes, scores);
}

SSD_CUDA_IMPL(m) {
  m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
