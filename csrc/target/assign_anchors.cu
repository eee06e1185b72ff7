#include <tuple>

#include "target/assign_anchors.cuh"
#include "target/assign_anchors.h"
#include "target/matching_launch.cuh"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor> assign_anchors_cuda(const Tensor& anchors, const Tensor& gt_boxes,
                                               std::optional<Tensor> gt_counts, double iou_threshold,
                                               double background_threshold, int64_t force_match) {
  check_assign_anchors(anchors, gt_boxes, gt_counts, iou_threshold, background_threshold, force_match);
  const bool padded = gt_boxes.dim() == 3;
  const int64_t num_images = padded ? gt_boxes.size(0) : gt_counts->size(0) - 1;
  const int64_t num_anchors = anchors.numel() / 4;
  std::optional<Tensor> counts;
  if (gt_counts) counts = torch::stable::contiguous(*gt_counts);
  Launcher launcher("assign_anchors", anchors);
  Tensor matched_idxs = torch::stable::new_empty(anchors, {num_images, num_anchors}, ScalarType::Long);
  Tensor matched_ious = anchors;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        matched_ious = new_real<T>(anchors, {num_images, num_anchors});
        const DeviceInput anchor_input(anchors), gt_input(gt_boxes);
        AssignProblem<T> problem = {};
        problem.anchors = anchor_input;
        problem.gt_boxes = gt_input;
        problem.gt_counts = counts ? static_cast<const int64_t*>(counts->const_data_ptr()) : nullptr;
        problem.padded = padded;
        problem.num_anchors = num_anchors;
        problem.rows_per_image = gt_boxes.size(padded ? 1 : 0);
        problem.num_rows = gt_boxes.numel() / 4;
        problem.rules = {static_cast<T>(iou_threshold), static_cast<T>(background_threshold),
                         static_cast<Force>(force_match)};
        problem.row_values = data<int64_t>(matched_idxs);
        problem.matched_ious = data<T>(matched_ious);
        launch_matching(launcher, "assign_anchors", problem, num_images);
      },
      anchors, gt_boxes);
  return {matched_idxs, matched_ious};
}

SSD_CUDA_IMPL(m) {
  m.impl("assign_anchors", TORCH_BOX(&assign_anchors_cuda));
}

}  // namespace
}  // namespace ssd_ops
