#include "boxes/decode_boxes.h"
#include "boxes/transform.cu.h"

namespace ssd_ops {
namespace {

Tensor decode_boxes_cuda(const Tensor& offsets,  // [..., A, 4]
                         const Tensor& anchors,  // [A, 4]
                         std::vector<double> variances, bool clip) {
  check_decode_boxes(offsets, anchors, variances);
  const Launcher launcher("decode_boxes", offsets);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        return launch_transform<T>(launcher, offsets, anchors, Decode<T>{to_variances<T>(variances), clip});
      },
      offsets, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
}

}  // namespace
}  // namespace ssd_ops
