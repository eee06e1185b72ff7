#include "boxes/encode_boxes.h"

#include "common/simd.h"

namespace ssd_ops {
namespace {

template <typename T>
SSD_HOST_DEVICE void encode_block_lanes(const T* boxes,    // [count, 4]
                                        const T* anchors,  // [count, 4]
                                        int64_t count, Variances<T> v, T eps,
                                        T* out) {  // [count, 4]
  for (int64_t i = 0; i < count; ++i) {
    const Offset<T> offset = encode(load_box(boxes + 4 * i), load_box(anchors + 4 * i), v, eps);
    out[4 * i] = offset.x;
    out[4 * i + 1] = offset.y;
    out[4 * i + 2] = offset.w;
    out[4 * i + 3] = offset.h;
  }
}

SSD_SIMD(void, encode_block,
         (const float* boxes, const float* anchors, int64_t count, Variances<float> v, float eps, float* out),
         (boxes, anchors, count, v, eps, out))
SSD_SIMD(void, encode_block,
         (const double* boxes, const double* anchors, int64_t count, Variances<double> v, double eps,
          double* out),
         (boxes, anchors, count, v, eps, out))

Tensor encode_boxes_cpu(const Tensor& boxes,    // [..., A, 4]
                        const Tensor& anchors,  // [A, 4]
                        std::vector<double> variances, double eps) {
  check_encode_boxes(boxes, anchors, variances, eps);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Variances<T> v = to_variances<T>(variances);
        return transform_cpu<T>(boxes, anchors, [&](const T* rows, const T* to, int64_t count, T* results) {
          encode_block(rows, to, count, v, static_cast<T>(eps), results);
        });
      },
      boxes, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("encode_boxes(Tensor boxes, Tensor anchors, float[] variances, float eps) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cpu));
}

}  // namespace
}  // namespace ssd_ops
