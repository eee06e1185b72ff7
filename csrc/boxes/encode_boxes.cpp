#include "boxes/encode_boxes.h"

#include "common/cpu_kernel.h"
#include "common/simd.h"

namespace ssd_ops {
namespace {

template <Coding kCoding, typename T>
SSD_HOST_DEVICE void encode_rows(const T* boxes,    // [count, 4]
                                 const T* anchors,  // [count, 4]
                                 int64_t count, Encoding<T> rules,
                                 T* out) {  // [count, 4]
  rules.coding = kCoding;                   // a constant, so that the loop has no branch
  for (int64_t i = 0; i < count; ++i) {
    const Offset<T> offset = encode(load_box(boxes + 4 * i), load_box(anchors + 4 * i), rules);
    out[4 * i] = offset.x;
    out[4 * i + 1] = offset.y;
    out[4 * i + 2] = offset.w;
    out[4 * i + 3] = offset.h;
  }
}

template <typename T>
SSD_HOST_DEVICE void encode_block_lanes(const T* boxes, const T* anchors, int64_t count, Encoding<T> rules,
                                        T* out) {
  if (rules.coding == Coding::kLinear)
    encode_rows<Coding::kLinear>(boxes, anchors, count, rules, out);
  else if (rules.coding == Coding::kDistance)
    encode_rows<Coding::kDistance>(boxes, anchors, count, rules, out);
  else
    encode_rows<Coding::kCenter>(boxes, anchors, count, rules, out);
}

SSD_SIMD(void, encode_block,
         (const float* boxes, const float* anchors, int64_t count, Encoding<float> rules, float* out),
         (boxes, anchors, count, rules, out))
SSD_SIMD(void, encode_block,
         (const double* boxes, const double* anchors, int64_t count, Encoding<double> rules, double* out),
         (boxes, anchors, count, rules, out))

Tensor encode_boxes_cpu(const Tensor& boxes,    // [..., A, 4]
                        const Tensor& anchors,  // [A, 4]
                        std::vector<double> variances, double eps, int64_t coding) {
  check_encode_boxes(boxes, anchors, variances, eps, coding);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Encoding<T> rules = to_encoding<T>(variances, coding, eps);
        return transform_cpu<T>(boxes, anchors, [&](const T* rows, const T* to, int64_t count, T* results) {
          encode_block(rows, to, count, rules, results);
        });
      },
      boxes, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("encode_boxes(Tensor boxes, Tensor anchors, float[] variances, float eps, int coding) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("encode_boxes", SSD_CPU_KERNEL(encode_boxes));
}

}  // namespace
}  // namespace ssd_ops
