#include "target/multibox_target.cuh"

#include <tuple>

#include "target/matching_launch.cuh"
#include "target/multibox_target.h"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> multibox_target_cuda(const Tensor& anchors, const Tensor& labels,
                                                        double iou_threshold, std::vector<double> variances,
                                                        int64_t semantics) {
  check_multibox_target(anchors, labels, iou_threshold, variances, semantics);
  const int64_t num_images = labels.size(0), num_anchors = anchors.numel() / 4;
  Launcher launcher("multibox_target", anchors);
  Tensor offsets = anchors, masks = anchors;
  Tensor cls_labels = torch::stable::new_empty(anchors, {num_images, num_anchors}, ScalarType::Long);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
        masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
        const DeviceInput anchor_input(anchors), label_input(labels);
        TargetProblem<T> problem = {};
        problem.anchors = anchor_input;
        problem.labels = label_input;
        problem.num_anchors = num_anchors;
        problem.num_gts = labels.size(1);
        problem.iou_threshold = static_cast<T>(iou_threshold);
        problem.min_forced_iou = T(-1);
        problem.variances = to_variances<T>(variances);
        problem.eps = static_cast<T>(kD2lEps);
        problem.offsets = data<T>(offsets);
        problem.masks = data<T>(masks);
        problem.row_values = data<int64_t>(cls_labels);
        launch_matching(launcher, "multibox_target", problem, num_images);
      },
      anchors, labels);
  return {offsets, masks, cls_labels};
}

SSD_CUDA_IMPL(m) { m.impl("multibox_target", TORCH_BOX(&multibox_target_cuda)); }

}  // namespace
}  // namespace ssd_ops
