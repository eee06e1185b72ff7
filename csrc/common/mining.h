// How hard negatives are mined, for host and device: hard_negative_mining and multibox_target.
#pragma once

#include "common/box.h"
#include "common/order.h"

namespace ssd_ops {

template <typename T>
using LossKey = typename FloatTraits<T>::Bits;

// The key of a loss: the smaller, the harder. A NaN has 0, which no number has: the key of +infinity is
// 2^23 - 1 or more.
template <typename T>
SSD_HOST_DEVICE LossKey<T> loss_key(T loss) {
  return loss == loss ? descending_key(loss) : 0;
}

// How many of `candidates` negatives an image with so many positives selects. The product is a Real, and is
// compared as one: it may exceed any integer.
template <typename Real>
SSD_HOST_DEVICE int64_t negatives_wanted(int64_t positives, int64_t candidates, double ratio,
                                         int64_t min_negatives) {
  const Real by_ratio = static_cast<Real>(ratio) * static_cast<Real>(positives);
  const int64_t wanted =
      by_ratio < static_cast<Real>(candidates) ? static_cast<int64_t>(by_ratio) : candidates;
  return min_of(max_of(wanted, min_negatives), candidates);
}

}  // namespace ssd_ops
