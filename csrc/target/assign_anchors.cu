#include <tuple>

#include "target/assign_anchors.cuh"
#include "target/assign_anchors.h"
#include "target/matching.cu.h"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor> assign_anchors_cuda(const Tensor& anchors,            // [A, 4] or [1, A, 4]
                                               const Tensor& gt_boxes,           // [B, G, 4] or [N, 4]
                                               std::optional<Tensor> gt_counts,  // [B] or [B + 1] int64
                                               double iou_threshold, double background_threshold,
                                               int64_t force_match,
                                               std::optional<Tensor> ignore_boxes,  // [B, K, 4]
                                               double ignore_threshold) {
  check_assign_anchors(anchors, gt_boxes, gt_counts, iou_threshold, background_threshold, force_match,
                       ignore_boxes, ignore_threshold);
  if (gt_counts) gt_counts = as_contiguous(*gt_counts);
  const GtLayout layout = gt_layout(gt_boxes, gt_counts);
  const int64_t num_anchors = anchors.numel() / 4;
  Launcher launcher("assign_anchors", anchors);
  Tensor matched_idxs = new_integers(anchors, {layout.num_images, num_anchors});
  const Tensor matched_ious = dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor ious = new_real<T>(anchors, {layout.num_images, num_anchors});
        const DeviceInput anchor_input(anchors), gt_input(gt_boxes);
        AssignProblem<T> problem = {};
        problem.anchors = anchor_input;
        problem.gt_boxes = gt_input;
        problem.layout = layout;
        problem.num_anchors = num_anchors;
        problem.num_rows = gt_boxes.numel() / 4;
        problem.rules = {static_cast<T>(iou_threshold), static_cast<T>(background_threshold),
                         static_cast<Force>(force_match)};
        problem.matched_idxs = data<int64_t>(matched_idxs);
        problem.matched_ious = data<T>(ious);
        launcher.with_scratch(
            [&] { launch_matching(launcher, problem, layout.num_images, layout.num_rows); });
        launch_ignoring(launcher, problem, layout.num_images, ignore_boxes, ignore_threshold);
        return ious;
      },
      anchors, gt_boxes, ignore_boxes);
  return {matched_idxs, matched_ious};
}

SSD_CUDA_IMPL(m) {
  m.impl("assign_anchors", TORCH_BOX(&assign_anchors_cuda));
}

}  // namespace
}  // namespace ssd_ops
