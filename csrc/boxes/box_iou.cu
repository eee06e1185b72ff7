#include "boxes/box_iou.h"

#include "boxes/box_iou.cuh"
#include "common/launch.cuh"

namespace ssd_ops {
namespace {

Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2) {
  check_box_iou(boxes1, boxes2);
  const int64_t rank = boxes1.dim(), n = boxes1.size(rank - 2), m = boxes2.size(rank - 2);
  std::vector<int64_t> shape(boxes1.sizes().begin(), boxes1.sizes().end());
  shape[rank - 1] = m;
  Tensor out = boxes1;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Launcher launcher("box_iou", boxes1);
        out = torch::stable::new_empty(boxes1, shape, kScalarType<T>);
        if (out.numel() == 0) return;
        const DeviceInput in1(boxes1), in2(boxes2);
        const int64_t groups = boxes1.numel() / (4 * n);
        const int64_t row_tiles = ceil_div(n, kIouRows), column_tiles = ceil_div(m, kIouColumns);
        launcher.run(&box_iou_kernel<T>, groups * row_tiles * column_tiles, kIouColumns, in1, in2, n, m,
                     row_tiles, column_tiles, data<T>(out));
      },
      boxes1, boxes2);
  return out;
}

SSD_CUDA_IMPL(m) { m.impl("box_iou", TORCH_BOX(&box_iou_cuda)); }

}  // namespace
}  // namespace ssd_ops
