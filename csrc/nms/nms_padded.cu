#include <tuple>

#include "nms/nms.cu.h"
#include "nms/nms_padded.h"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes,   // [B, N, 4]
                                           const Tensor& scores,  // [B, N]
                                           double iou_threshold, int64_t metric) {
  check_nms_padded(boxes, scores, iou_threshold, metric);
  const int64_t num_images = boxes.size(0), count = boxes.size(1);
  Launcher launcher("nms_padded", boxes);
  Tensor indices = new_integers(boxes, {num_images, count}), counts = new_integers(boxes, {num_images});
  launch_nms(launcher, boxes, scores, nullptr, iou_threshold, metric, num_images, count,
             data<int64_t>(indices), data<int64_t>(counts));
  return {indices, counts};
}

SSD_CUDA_IMPL(m) {
  m.impl("nms_padded", TORCH_BOX(&nms_padded_cuda));
}

}  // namespace
}  // namespace ssd_ops
