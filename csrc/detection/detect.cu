#include "detection/detect.cuh"
#include "detection/detect.h"
#include "nms/selection_launch.cuh"

namespace ssd_ops {
namespace {

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five detect_cuda(const Tensor& cls_scores, const Tensor& offset_preds, const Tensor& anchors,
                 int64_t activation, double score_threshold, double iou_threshold, int64_t topk,
                 int64_t max_detections, std::vector<double> variances, bool clip, bool class_agnostic) {
  check_detect(cls_scores, offset_preds, anchors, activation, score_threshold, iou_threshold, topk,
               max_detections, variances);
  const int64_t count = cls_scores.size(1), width = cls_scores.size(2);
  Launcher launcher("detect", cls_scores);
  Five out{cls_scores, cls_scores, cls_scores, cls_scores, cls_scores};
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const DeviceInput scores(cls_scores), offsets(offset_preds), anchor_input(anchors);
        const SelectionSizes<T> sizes{cls_scores.size(0),
                                      count,
                                      activation == kActivationSoftmax ? width - 1 : width,
                                      static_cast<T>(score_threshold),
                                      round_down<T>(iou_threshold),
                                      topk,
                                      max_detections,
                                      class_agnostic};
        const DecodedBoxes<T> boxes{offsets, anchor_input, count, to_variances<T>(variances), clip};
        if (activation == kActivationSoftmax)
          out = launch_selection(launcher, "detect", cls_scores,
                                 HeadScores<T, kActivationSoftmax>{scores, count, width}, boxes, sizes);
        else if (activation == kActivationSigmoid)
          out = launch_selection(launcher, "detect", cls_scores,
                                 HeadScores<T, kActivationSigmoid>{scores, count, width}, boxes, sizes);
        else
          out = launch_selection(launcher, "detect", cls_scores,
                                 HeadScores<T, kActivationNone>{scores, count, width}, boxes, sizes);
      },
      cls_scores, offset_preds, anchors);
  return out;
}

SSD_CUDA_IMPL(m) {
  m.impl("detect", TORCH_BOX(&detect_cuda));
}

}  // namespace
}  // namespace ssd_ops
