#include "nms/multiclass_nms.cuh"
#include "nms/multiclass_nms.h"
#include "nms/selection_launch.cuh"

namespace ssd_ops {
namespace {

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five multiclass_nms_cuda(const Tensor& boxes, const Tensor& scores, double score_threshold,
                         double iou_threshold, int64_t topk, int64_t max_detections, bool class_agnostic) {
  check_multiclass_nms(boxes, scores, score_threshold, iou_threshold, topk, max_detections);
  const int64_t count = boxes.size(1), classes = scores.size(2);
  Launcher launcher("multiclass_nms", boxes);
  Five out{boxes, boxes, boxes, boxes, boxes};
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const DeviceInput box_input(boxes), score_input(scores);
        const SelectionSizes<T> sizes{boxes.size(0),
                                      count,
                                      classes,
                                      static_cast<T>(score_threshold),
                                      round_down<T>(iou_threshold),
                                      topk,
                                      max_detections,
                                      class_agnostic};
        out = launch_selection(launcher, "multiclass_nms", boxes, ScoreRows<T>{score_input, count, classes},
                               BoxRows<T>{box_input, count}, sizes);
      },
      boxes, scores);
  return out;
}

SSD_CUDA_IMPL(m) {
  m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
