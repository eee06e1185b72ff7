#include "detection/detect.cuh"
#include "detection/detect.h"
#include "detection/selection.cu.h"

namespace ssd_ops {
namespace {

Detections detect_cuda(const Tensor& cls_scores,    // [B, A, C+1] or [B, A, C]
                       const Tensor& offset_preds,  // [B, A, 4] or [B, 4A]
                       const Tensor& anchors,       // [A, 4] or [1, A, 4]
                       int64_t activation, double score_threshold, double iou_threshold, int64_t topk,
                       int64_t max_detections, std::vector<double> variances, std::vector<double> clip,
                       bool class_agnostic, int64_t metric, int64_t coding, double max_log_size,
                       bool best_class_only, std::vector<int64_t> level_counts, int64_t topk_per_level) {
  check_detect(cls_scores, offset_preds, anchors, activation, score_threshold, iou_threshold, topk,
               max_detections, variances, clip, metric, coding, max_log_size, level_counts, topk_per_level);
  const int64_t num_images = cls_scores.size(0), num_anchors = cls_scores.size(1), width = cls_scores.size(2);
  Launcher launcher("detect", cls_scores);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const DeviceInput scores(cls_scores), offsets(offset_preds), anchor_input(anchors);
        const DecodedBoxes<T> boxes{offsets, anchor_input, num_anchors,
                                    to_decoding<T>(variances, clip, coding, max_log_size)};
        const SelectionRules<T> rules(score_threshold, iou_threshold, topk, max_detections, class_agnostic,
                                      metric, {best_class_only, level_counts, topk_per_level});
        const auto run = [&](const auto& head) {
          return launch_selection(launcher, cls_scores, head, boxes, num_images, rules);
        };
        switch (static_cast<Activation>(activation)) {
          case Activation::kSoftmax:
            return run(ClassScores<T, Activation::kSoftmax>{scores, num_anchors, width, nullptr, nullptr});
          case Activation::kSigmoid:
            return run(ClassScores<T, Activation::kSigmoid>{scores, num_anchors, width, nullptr, nullptr});
          default:
            return run(ClassScores<T, Activation::kNone>{scores, num_anchors, width, nullptr, nullptr});
        }
      },
      cls_scores, offset_preds, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("detect", TORCH_BOX(&detect_cuda));
}

}  // namespace
}  // namespace ssd_ops
