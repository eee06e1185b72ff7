// The launch that encode_boxes and decode_boxes share.
#pragma once

#include "boxes/transform.cuh"
#include "common/launch.cuh"

namespace ssd_ops {

template <typename T, typename Convert>
Tensor transform_cuda(const char* op, const Tensor& rows, const Tensor& anchors, Convert convert) {
  const Launcher launcher(op, rows);
  const std::vector<int64_t> shape(rows.sizes().begin(), rows.sizes().end());
  Tensor out = torch::stable::new_empty(rows, shape, kScalarType<T>);
  const int64_t total = rows.numel() / 4;
  if (total == 0) return out;
  const DeviceInput row_input(rows), anchor_input(anchors);
  launcher.run(&transform_kernel<T, Convert>, ceil_div(total, kTransformThreads), kTransformThreads, row_input,
               anchor_input, total, anchors.numel() / 4, convert, data<T>(out));
  return out;
}

}  // namespace ssd_ops
