// The launch that encode_boxes and decode_boxes share.
#pragma once

#include "boxes/transform.cuh"
#include "common/launch.cu.h"

namespace ssd_ops {

template <typename T, typename Convert>
Tensor launch_transform(const Launcher& launcher,
                        const Tensor& rows,     // [..., A, 4]
                        const Tensor& anchors,  // [A, 4]
                        Convert convert) {
  Tensor out = new_real_like<T>(rows);
  const int64_t total = rows.numel() / 4;
  if (total == 0) return out;
  const DeviceInput row_input(rows), anchor_input(anchors);
  launcher.run(&transform_kernel<T, Convert>, ceil_div(total, kTransformThreads), kTransformThreads,
               row_input, anchor_input, total, anchors.numel() / 4, convert, data<T>(out));
  return out;
}

}  // namespace ssd_ops
