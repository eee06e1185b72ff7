// The rule of the selection, for host and device.
#pragma once

#include "common/order.h"

namespace ssd_ops {

// How many negatives an image selects.
SSD_HOST_DEVICE int64_t negatives_wanted(int64_t positives, int64_t negatives, double ratio,
                                         int64_t min_negatives) {
  // Compared as double: ratio * positives may exceed any integer.
  const double by_ratio = ratio * static_cast<double>(positives);
  const int64_t wanted =
      by_ratio < static_cast<double>(negatives) ? static_cast<int64_t>(by_ratio) : negatives;
  return min_of(max_of(wanted, min_negatives), negatives);
}

}  // namespace ssd_ops
