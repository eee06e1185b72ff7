// The anchor of one cell, for host and device.
#pragma once

#include "common/box.h"

namespace ssd_ops {

// (y, x) in cells; `offset` where in its cell a center lies, `step` from cell to cell in fractions of the
// image.
template <typename T>
SSD_HOST_DEVICE T prior_center(int64_t cell, T offset, T step) {
  return (static_cast<T>(cell) + offset) * step;
}

template <typename T>
SSD_HOST_DEVICE Box<T> prior_box(T cy, T cx, T half_w, T half_h, bool clip) {
  const Box<T> box{cx - half_w, cy - half_h, cx + half_w, cy + half_h};
  return clip ? clip_box(box, T(1), T(1)) : box;
}

}  // namespace ssd_ops
