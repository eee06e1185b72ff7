#include "boxes/box_iou.h"

#include "common/cpu_kernel.h"
#include "common/simd.h"

namespace ssd_ops {
namespace {

constexpr int64_t kGrain = 16384;  // pairs per task

template <Metric kMetric, typename T>
SSD_HOST_DEVICE void overlap_row(Box<T> a,
                                 const T* boxes,  // [count, 4]
                                 int64_t count,
                                 T* out) {  // [count]
  const T area_a = area(a);
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> b = load_box(boxes + 4 * i);
    out[i] = overlap(kMetric, a, area_a, b, area(b));
  }
}

template <typename T>
SSD_HOST_DEVICE void iou_row_lanes(Box<T> a, const T* boxes, int64_t count, T* out) {
  overlap_row<Metric::kIou>(a, boxes, count, out);
}

template <typename T>
SSD_HOST_DEVICE void ios_row_lanes(Box<T> a, const T* boxes, int64_t count, T* out) {
  overlap_row<Metric::kIos>(a, boxes, count, out);
}

SSD_SIMD(void, iou_row, (Box<float> a, const float* boxes, int64_t count, float* out), (a, boxes, count, out))
SSD_SIMD(void, iou_row, (Box<double> a, const double* boxes, int64_t count, double* out),
         (a, boxes, count, out))
SSD_SIMD(void, ios_row, (Box<float> a, const float* boxes, int64_t count, float* out), (a, boxes, count, out))
SSD_SIMD(void, ios_row, (Box<double> a, const double* boxes, int64_t count, double* out),
         (a, boxes, count, out))

Tensor box_iou_cpu(const Tensor& boxes1,  // [..., N, 4]
                   const Tensor& boxes2,  // [..., M, 4]
                   int64_t metric) {
  check_box_iou(boxes1, boxes2, metric);
  const int64_t n = boxes1.size(boxes1.dim() - 2), m = boxes2.size(boxes2.dim() - 2);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor out = new_ious<T>(boxes1, boxes2);
        if (out.numel() == 0) return out;
        const Reader<T> read1(boxes1), read2(boxes2);
        T* ious = data<T>(out);
        torch::stable::parallel_for(0, boxes1.numel() / 4, kGrain / m + 1, [&](int64_t begin, int64_t end) {
          std::vector<T> buffer1, buffer2;
          const T* rows2 = nullptr;
          int64_t group = -1;
          for (int64_t i = begin; i < end; ++i) {
            if (i / n != group) {
              group = i / n;
              rows2 = read2.read(4 * group * m, 4 * m, buffer2);
            }
            const Box<T> box = load_box(read1.read(4 * i, 4, buffer1));
            if (static_cast<Metric>(metric) == Metric::kIos)
              ios_row(box, rows2, m, ious + i * m);
            else
              iou_row(box, rows2, m, ious + i * m);
          }
        });
        return out;
      },
      boxes1, boxes2);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("box_iou(Tensor boxes1, Tensor boxes2, int metric) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("box_iou", SSD_CPU_KERNEL(box_iou));
}

}  // namespace
}  // namespace ssd_ops
