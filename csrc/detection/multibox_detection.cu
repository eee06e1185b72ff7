#include "detection/multibox_detection.cuh"

#include "detection/multibox_detection.h"
#include "nms/greedy_launch.cuh"

namespace ssd_ops {
namespace {

Tensor multibox_detection_cuda(const Tensor& cls_probs, const Tensor& offset_preds, const Tensor& anchors,
                               double nms_threshold, double pos_threshold, std::vector<double> variances,
                               int64_t semantics) {
  check_multibox_detection(cls_probs, offset_preds, anchors, nms_threshold, pos_threshold, variances,
                           semantics);
  const int64_t num_images = cls_probs.size(0), num_anchors = cls_probs.size(2), total = num_images * num_anchors;
  Launcher launcher("multibox_detection", cls_probs);
  Tensor out = cls_probs;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        out = new_real<T>(cls_probs, {num_images, num_anchors, 6});
        if (total == 0) return;
        const DeviceInput probs(cls_probs), offsets(offset_preds), anchor_input(anchors);
        Candidates<T> candidates = {};
        candidates.num_anchors = num_anchors;
        candidates.scores = launcher.scratch<T>(total);
        candidates.boxes = launcher.scratch<T>(4 * total);
        candidates.classes = launcher.scratch<int32_t>(total);
        launcher.run(&best_class_kernel<T>, ceil_div(total, kDetectionThreads), kDetectionThreads, probs, offsets,
                     anchor_input, num_images, cls_probs.size(1) - 1, to_variances<T>(variances), candidates);
        const D2lRows<T> writer{candidates, static_cast<T>(pos_threshold), data<T>(out)};
        const NmsPlan<T> plan{num_images, num_anchors, num_anchors, num_anchors,
                              static_cast<T>(nms_threshold)};
        launch_greedy_nms<T>(launcher, "multibox_detection", candidates, writer, plan);
      },
      cls_probs, offset_preds, anchors);
  return out;
}

SSD_CUDA_IMPL(m) { m.impl("multibox_detection", TORCH_BOX(&multibox_detection_cuda)); }

}  // namespace
}  // namespace ssd_ops
