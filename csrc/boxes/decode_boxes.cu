#include "boxes/decode_boxes.h"

#include "boxes/transform_launch.cuh"

namespace ssd_ops {
namespace {

Tensor decode_boxes_cuda(const Tensor& offsets, const Tensor& anchors, std::vector<double> variances,
                         bool clip) {
  check_decode_boxes(offsets, anchors, variances);
  Tensor out = offsets;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        out =
            transform_cuda<T>("decode_boxes", offsets, anchors, Decode<T>{to_variances<T>(variances), clip});
      },
      offsets, anchors);
  return out;
}

SSD_CUDA_IMPL(m) { m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda)); }

}  // namespace
}  // namespace ssd_ops
