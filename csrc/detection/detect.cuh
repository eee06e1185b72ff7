// The boxes of detect.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

// Decoded where they are asked for: of candidates alone.
template <typename T>
struct DecodedBoxes {
  Input offset_preds, anchors;  // [B, A, 4], [A, 4]
  int64_t count;
  Decoding<T> decoding;

  __device__ Box<T> operator()(int64_t image, int64_t i) const {
    const Box<T> o = load_row<T>(offset_preds, image * count + i);
    return decode({o.x1, o.y1, o.x2, o.y2}, load_row<T>(anchors, i), decoding);
  }
};

}  // namespace ssd_ops
