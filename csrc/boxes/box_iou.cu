#include "boxes/box_iou.cuh"
#include "boxes/box_iou.h"
#include "common/launch.cu.h"

namespace ssd_ops {
namespace {

Tensor box_iou_cuda(const Tensor& boxes1,  // [..., N, 4]
                    const Tensor& boxes2,  // [..., M, 4]
                    int64_t metric) {
  check_box_iou(boxes1, boxes2, metric);
  const int64_t n = boxes1.size(boxes1.dim() - 2), m = boxes2.size(boxes2.dim() - 2);
  const Launcher launcher("box_iou", boxes1);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor out = new_ious<T>(boxes1, boxes2);
        if (out.numel() == 0) return out;
        const DeviceInput in1(boxes1), in2(boxes2);
        const int64_t groups = boxes1.numel() / (4 * n);
        const int64_t row_tiles = ceil_div(n, kIouRows), column_tiles = ceil_div(m, kIouColumns);
        launcher.run(&box_iou_kernel<T>, groups * row_tiles * column_tiles, kIouColumns, in1, in2, n, m,
                     row_tiles, column_tiles, static_cast<Metric>(metric), data<T>(out));
        return out;
      },
      boxes1, boxes2);
}

SSD_CUDA_IMPL(m) {
  m.impl("box_iou", TORCH_BOX(&box_iou_cuda));
}

}  // namespace
}  // namespace ssd_ops
