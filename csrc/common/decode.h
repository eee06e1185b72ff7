// The vectorised loop over `decode`, for the ops that decode whole images.
#pragma once

#include "common/box.h"
#include "common/simd.h"

namespace ssd_ops {

template <typename T>
SSD_HOST_DEVICE void decode_rows(const T* __restrict offsets,  // [count, 4]
                                 const T* __restrict anchors,  // [count, 4]
                                 int64_t count, Decoding<T> rules,
                                 T* __restrict boxes) {  // [count, 4]
  for (int64_t i = 0; i < count; ++i) {
    const T* o = offsets + 4 * i;
    store_box(decode({o[0], o[1], o[2], o[3]}, load_box(anchors + 4 * i), rules), boxes + 4 * i);
  }
}

// Rules that are constants: a loop without branches, and without limits where there are none.
template <Coding kCoding, typename T>
SSD_HOST_DEVICE void decode_rows_of(const T* offsets, const T* anchors, int64_t count, Decoding<T> rules,
                                    T* boxes) {
  const Decoding<T> free{kCoding, rules.variances};
  rules.coding = kCoding;
  if (rules.clips) {
    rules.clips = true;
    decode_rows(offsets, anchors, count, rules, boxes);
  } else if (rules.max_log_size < rules.kInfinity) {
    rules.clips = false;
    decode_rows(offsets, anchors, count, rules, boxes);
  } else {
    decode_rows(offsets, anchors, count, free, boxes);
  }
}

template <typename T>
SSD_HOST_DEVICE void decode_block_lanes(const T* offsets, const T* anchors, int64_t count, Decoding<T> rules,
                                        T* boxes) {
  if (rules.coding == Coding::kLinear)
    decode_rows_of<Coding::kLinear>(offsets, anchors, count, rules, boxes);
  else if (rules.coding == Coding::kDistance)
    decode_rows_of<Coding::kDistance>(offsets, anchors, count, rules, boxes);
  else
    decode_rows_of<Coding::kCenter>(offsets, anchors, count, rules, boxes);
}

SSD_SIMD(void, decode_block,
         (const float* offsets, const float* anchors, int64_t count, Decoding<float> rules, float* boxes),
         (offsets, anchors, count, rules, boxes))
SSD_SIMD(void, decode_block,
         (const double* offsets, const double* anchors, int64_t count, Decoding<double> rules, double* boxes),
         (offsets, anchors, count, rules, boxes))

}  // namespace ssd_ops
