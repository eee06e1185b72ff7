#include "boxes/decode_boxes.h"

#include "common/decode.h"

namespace ssd_ops {
namespace {

Tensor decode_boxes_cpu(const Tensor& offsets,  // [..., A, 4]
                        const Tensor& anchors,  // [A, 4]
                        std::vector<double> variances, bool clip) {
  check_decode_boxes(offsets, anchors, variances);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Variances<T> v = to_variances<T>(variances);
        return transform_cpu<T>(offsets, anchors, [&](const T* rows, const T* to, int64_t count, T* results) {
          decode_block(rows, to, count, v, results);
          if (!clip) return;
          for (int64_t i = 0; i < 4 * count; ++i) results[i] = clip_unit(results[i]);
        });
      },
      offsets, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("decode_boxes(Tensor offsets, Tensor anchors, float[] variances, bool clip) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cpu));
}

}  // namespace
}  // namespace ssd_ops
