// The scores and the boxes of multiclass_nms, for selection.cuh.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

template <typename T>
struct ScoreRows {
  Input scores;  // [B, N, C]
  int64_t count, classes;

  __device__ auto row(int64_t image, int64_t box) const {
    const Input in = scores;
    const int64_t first = (image * count + box) * classes;
    return [in, first](int64_t c) { return load<T>(in, first + c); };
  }
};

template <typename T>
struct BoxRows {
  Input boxes;  // [B, N, 4]
  int64_t count;

  __device__ Box<T> operator()(int64_t image, int64_t i) const {
    return load_row<T>(boxes, image * count + i);
  }
};

}  // namespace ssd_ops
