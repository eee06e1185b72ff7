#include "detection/detect.cuh"
#include "detection/detect.h"
#include "detection/selection.cu.h"

namespace ssd_ops {
namespace {

Detections detect_cuda(const Tensor& cls_scores,    // [B, A, C+1] or [B, A, C]
                       const Tensor& offset_preds,  // [B, A, 4] or [B, 4A]
                       const Tensor& anchors,       // [A, 4] or [1, A, 4]
                       int64_t activation, double score_threshold, double iou_threshold, int64_t topk,
                       int64_t max_detections, std::vector<double> variances, bool clip, bool class_agnostic,
                       int64_t metric) {
  check_detect(cls_scores, offset_preds, anchors, activation, score_threshold, iou_threshold, topk,
               max_detections, variances, metric);
  const int64_t num_images = cls_scores.size(0), num_anchors = cls_scores.size(1), width = cls_scores.size(2);
  Launcher launcher("detect", cls_scores);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const DeviceInput scores(cls_scores), offsets(offset_preds), anchor_input(anchors);
        const DecodedBoxes<T> boxes{offsets, anchor_input, num_anchors, to_variances<T>(variances), clip};
        const SelectionRules<T> rules(score_threshold, iou_threshold, topk, max_detections, class_agnostic,
                                      metric);
        const auto run = [&](const auto& head) {
          return launch_selection(launcher, cls_scores, head, boxes, num_images, rules);
        };
        switch (static_cast<Activation>(activation)) {
          case Activation::kSoftmax:
            return run(ClassScores<T, Activation::kSoftmax>{scores, num_anchors, width});
          case Activation::kSigmoid:
            return run(ClassScores<T, Activation::kSigmoid>{scores, num_anchors, width});
          default:
            return run(ClassScores<T, Activation::kNone>{scores, num_anchors, width});
        }
      },
      cls_scores, offset_preds, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("detect", TORCH_BOX(&detect_cuda));
}

}  // namespace
}  // namespace ssd_ops
