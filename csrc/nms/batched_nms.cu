#include "nms/batched_nms.h"
#include "nms/nms_launch.cuh"

namespace ssd_ops {
namespace {

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  check_batched_nms(boxes, scores, idxs, iou_threshold);
  const Tensor groups = torch::stable::contiguous(idxs);
  return nms_indices("batched_nms", boxes, scores, static_cast<const int64_t*>(groups.const_data_ptr()),
                     iou_threshold);
}

SSD_CUDA_IMPL(m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
