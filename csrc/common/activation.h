// Class scores from logits, for host and device. No torch header.
//
// The order of operations is part of the contract: sums run over the classes in their order.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/math.h"

namespace ssd_ops {

// The numbers stand in the schema of detect.
enum class Activation : int64_t { kNone, kSoftmax, kSigmoid };

template <typename T>
SSD_HOST_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// Softmax of `count` logits, at(c) that of class c: its probability is exp(logit_c - greatest) / sum.
// A NaN logit, or an infinite one, makes every probability NaN.
template <typename T>
struct Softmax {
  T greatest, sum;
};

template <typename T, typename At>
SSD_HOST_DEVICE Softmax<T> softmax_of(const At& at, int64_t count) {
  Softmax<T> s{at(0), T(0)};
  for (int64_t c = 1; c < count; ++c) {
    const T logit = at(c);
    s.greatest = logit > s.greatest ? logit : s.greatest;
  }
  for (int64_t c = 0; c < count; ++c) s.sum += exp(at(c) - s.greatest);
  return s;
}

template <typename T>
SSD_HOST_DEVICE T probability(Softmax<T> s, T logit) {
  return exp(logit - s.greatest) / s.sum;
}

}  // namespace ssd_ops
