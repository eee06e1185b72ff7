#include "nms/nms_padded.h"

#include <tuple>

#include "nms/nms_launch.cuh"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms_padded(boxes, scores, iou_threshold);
  const int64_t num_images = boxes.size(0), count = boxes.size(1);
  Launcher launcher("nms_padded", boxes);
  Tensor indices = torch::stable::new_empty(boxes, {num_images, count}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {num_images}, ScalarType::Long);
  launch_nms_padded(launcher, "nms_padded", boxes, scores, iou_threshold, num_images, count,
                    data<int64_t>(indices), data<int64_t>(counts));
  return {indices, counts};
}

SSD_CUDA_IMPL(m) { m.impl("nms_padded", TORCH_BOX(&nms_padded_cuda)); }

}  // namespace
}  // namespace ssd_ops
