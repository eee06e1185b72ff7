// Which row of labels is a ground truth, for host and device.
#pragma once

#include "common/box.h"

namespace ssd_ops {

// A row (class, box) is padding where this is false. Classes past 2^60 cannot be told apart in a float; the
// bound also keeps class + 1 clear of what the CUDA kernels note in the upper bits while they match.
template <typename T>
SSD_HOST_DEVICE bool is_ground_truth(T cls, Box<T> box) {
  constexpr T kMaxClass = static_cast<T>(int64_t{1} << 60);
  return cls >= T(0) && cls < kMaxClass && is_proper(box);
}

}  // namespace ssd_ops
