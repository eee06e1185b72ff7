#include "boxes/encode_boxes.h"
#include "boxes/transform.cu.h"

namespace ssd_ops {
namespace {

Tensor encode_boxes_cuda(const Tensor& boxes,    // [..., A, 4]
                         const Tensor& anchors,  // [A, 4]
                         std::vector<double> variances, double eps, int64_t coding) {
  check_encode_boxes(boxes, anchors, variances, eps, coding);
  const Launcher launcher("encode_boxes", boxes);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Encode<T> convert{to_encoding<T>(variances, coding, eps)};
        return launch_transform<T>(launcher, boxes, anchors, convert);
      },
      boxes, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cuda));
}

}  // namespace
}  // namespace ssd_ops
