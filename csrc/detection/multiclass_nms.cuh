// The boxes of multiclass_nms.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

template <typename T>
struct BoxRows {
  Input boxes;  // [B, N, 4]
  int64_t count;

  __device__ Box<T> operator()(int64_t image, int64_t i) const {
    return load_row<T>(boxes, image * count + i);
  }
};

}  // namespace ssd_ops
