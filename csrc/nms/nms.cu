#include "nms/nms.h"
#include "nms/nms_launch.cuh"

namespace ssd_ops {
namespace {

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, iou_threshold);
  return nms_indices("nms", boxes, scores, nullptr, iou_threshold);
}

SSD_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
