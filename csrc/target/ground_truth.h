// Which row of labels is a ground truth, for host and device.
#pragma once

#include "common/box.h"
#include "common/semantics.h"

namespace ssd_ops {

// A row (class, box) is padding where this is false. Classes past 2^60 cannot be told apart in a float; the
// bound also keeps class + 1 clear of what the CUDA kernels note in the upper bits while they match.
// torchvision refuses boxes without area; here they are padding.
template <typename T>
SSD_HOST_DEVICE bool is_ground_truth(T cls, Box<T> box, int64_t semantics = kSemanticsD2l) {
  constexpr T kMaxClass = static_cast<T>(int64_t{1} << 60);
  const bool usable = semantics == kSemanticsTorchvision ? has_extent(box) : is_proper(box);
  return cls >= T(0) && cls < kMaxClass && usable;
}

}  // namespace ssd_ops
