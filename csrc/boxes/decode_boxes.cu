#include "boxes/decode_boxes.h"
#include "boxes/transform.cu.h"

namespace ssd_ops {
namespace {

Tensor decode_boxes_cuda(const Tensor& offsets,  // [..., A, 4]
                         const Tensor& anchors,  // [A, 4]
                         std::vector<double> variances, std::vector<double> clip, int64_t coding,
                         double max_log_size) {
  check_decode_boxes(offsets, anchors, variances, clip, coding, max_log_size);
  const Launcher launcher("decode_boxes", offsets);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Decode<T> convert{to_decoding<T>(variances, clip, coding, max_log_size)};
        return launch_transform<T>(launcher, offsets, anchors, convert);
      },
      offsets, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
}

}  // namespace
}  // namespace ssd_ops
