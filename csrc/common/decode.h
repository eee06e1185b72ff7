// The vectorised loop over `decode`, for the ops that decode whole images.
#pragma once

#include "common/box.h"
#include "common/simd.h"

namespace ssd_ops {

template <typename T>
SSD_HOST_DEVICE void decode_block_lanes(const T* __restrict offsets,  // [count, 4]
                                        const T* __restrict anchors,  // [count, 4]
                                        int64_t count, Variances<T> v,
                                        T* __restrict boxes) {  // [count, 4]
  for (int64_t i = 0; i < count; ++i) {
    const T* o = offsets + 4 * i;
    store_box(decode({o[0], o[1], o[2], o[3]}, load_box(anchors + 4 * i), v), boxes + 4 * i);
  }
}

SSD_SIMD(void, decode_block,
         (const float* offsets, const float* anchors, int64_t count, Variances<float> v, float* boxes),
         (offsets, anchors, count, v, boxes))
SSD_SIMD(void, decode_block,
         (const double* offsets, const double* anchors, int64_t count, Variances<double> v, double* boxes),
         (offsets, anchors, count, v, boxes))

}  // namespace ssd_ops
