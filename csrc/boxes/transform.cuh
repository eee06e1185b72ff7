// encode_boxes and decode_boxes on the GPU: one thread a row.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

constexpr int kTransformThreads = 256;

template <typename T>
struct Encode {
  Encoding<T> rules;

  __device__ Box<T> operator()(Box<T> box, Box<T> anchor) const {
    const Offset<T> offset = encode(box, anchor, rules);
    return {offset.x, offset.y, offset.w, offset.h};
  }
};

template <typename T>
struct Decode {
  Decoding<T> rules;

  __device__ Box<T> operator()(Box<T> offset, Box<T> anchor) const {
    return decode({offset.x1, offset.y1, offset.x2, offset.y2}, anchor, rules);
  }
};

// Row i of `rows` goes with row i % repeat of `anchors`.
template <typename T, typename Convert>
__global__ void __launch_bounds__(kTransformThreads)
    transform_kernel(Input rows,     // [total, 4]
                     Input anchors,  // [repeat, 4]
                     int64_t total, int64_t repeat, Convert convert,
                     T* out) {  // [total, 4]
  const int64_t i = global_index();
  if (i < total) store_row(out, i, convert(load_row<T>(rows, i), load_row<T>(anchors, i % repeat)));
}

}  // namespace ssd_ops
