#include "nms/batched_nms.h"
#include "nms/nms.cu.h"

namespace ssd_ops {
namespace {

Tensor batched_nms_cuda(const Tensor& boxes,   // [N, 4]
                        const Tensor& scores,  // [N]
                        const Tensor& idxs,    // [N] int64
                        double iou_threshold, int64_t metric) {
  check_batched_nms(boxes, scores, idxs, iou_threshold, metric);
  const Tensor groups = as_contiguous(idxs);
  Launcher launcher("batched_nms", boxes);
  return nms_indices(launcher, boxes, scores, const_data<int64_t>(groups), iou_threshold, metric);
}

SSD_CUDA_IMPL(m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cuda));
}

}  // namespace
}  // namespace ssd_ops
