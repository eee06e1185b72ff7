#include "nms/nms.cu.h"
#include "nms/nms.h"

namespace ssd_ops {
namespace {

Tensor nms_cuda(const Tensor& boxes,   // [N, 4]
                const Tensor& scores,  // [N]
                double iou_threshold, int64_t metric) {
  check_nms(boxes, scores, iou_threshold, metric);
  Launcher launcher("nms", boxes);
  return nms_indices(launcher, boxes, scores, nullptr, iou_threshold, metric);
}

SSD_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
