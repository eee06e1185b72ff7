#include "nms/nms.h"

#include "nms/nms_launch.cuh"

namespace ssd_ops {
namespace {

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, iou_threshold);
  const int64_t count = boxes.size(0);
  Launcher launcher("nms", boxes);
  // The number kept lies behind the indices.
  Tensor indices = torch::stable::new_empty(boxes, {count + 1}, ScalarType::Long);
  int64_t* index_data = data<int64_t>(indices);
  launch_nms_padded(launcher, "nms", boxes, scores, iou_threshold, 1, count, index_data, index_data + count);
  // The one wait: the size of the result has to be known here.
  int64_t kept = 0;
  launcher.check(cudaMemcpyAsync(&kept, index_data + count, sizeof(kept), cudaMemcpyDeviceToHost,
                                 launcher.stream()));
  launcher.check(cudaStreamSynchronize(launcher.stream()));
  return torch::stable::narrow(indices, 0, 0, kept);
}

SSD_CUDA_IMPL(m) { m.impl("nms", TORCH_BOX(&nms_cuda)); }

}  // namespace
}  // namespace ssd_ops
