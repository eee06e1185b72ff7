#include "boxes/decode_boxes.h"

#include "common/cpu_kernel.h"
#include "common/decode.h"

namespace ssd_ops {
namespace {

Tensor decode_boxes_cpu(const Tensor& offsets,  // [..., A, 4]
                        const Tensor& anchors,  // [A, 4]
                        std::vector<double> variances, std::vector<double> clip, int64_t coding,
                        double max_log_size) {
  check_decode_boxes(offsets, anchors, variances, clip, coding, max_log_size);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Decoding<T> rules = to_decoding<T>(variances, clip, coding, max_log_size);
        return transform_cpu<T>(offsets, anchors, [&](const T* rows, const T* to, int64_t count, T* results) {
          decode_block(rows, to, count, rules, results);
        });
      },
      offsets, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "decode_boxes(Tensor offsets, Tensor anchors, float[] variances, float[] clip, int coding, "
      "float max_log_size) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("decode_boxes", SSD_CPU_KERNEL(decode_boxes));
}

}  // namespace
}  // namespace ssd_ops
