#include "boxes/encode_boxes.h"

#include "boxes/transform_launch.cuh"

namespace ssd_ops {
namespace {

Tensor encode_boxes_cuda(const Tensor& boxes, const Tensor& anchors, std::vector<double> variances,
                         double eps) {
  check_encode_boxes(boxes, anchors, variances, eps);
  Tensor out = boxes;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        out = transform_cuda<T>("encode_boxes", boxes, anchors,
                                Encode<T>{to_variances<T>(variances), static_cast<T>(eps)});
      },
      boxes, anchors);
  return out;
}

SSD_CUDA_IMPL(m) { m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cuda)); }

}  // namespace
}  // namespace ssd_ops
