// Class scores from logits, once, for host and device. No torch header.
//
// The order of operations is part of the contract: sums run over the classes in their order.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/math.h"

namespace ssd_ops {

constexpr int64_t kActivationNone = 0;
constexpr int64_t kActivationSoftmax = 1;
constexpr int64_t kActivationSigmoid = 2;

template <typename T>
SSD_HOST_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// Softmax of the `count` logits at `stride`: class c has the probability exp(logit_c - greatest) / sum.
// A NaN logit, or an infinite one, makes every probability NaN.
template <typename T>
struct Softmax {
  T greatest, sum;
};

template <typename T>
SSD_HOST_DEVICE Softmax<T> softmax_of(const T* logits, int64_t count, int64_t stride) {
  Softmax<T> s{logits[0], T(0)};
  for (int64_t c = 1; c < count; ++c) {
    const T logit = logits[c * stride];
    s.greatest = logit > s.greatest ? logit : s.greatest;
  }
  for (int64_t c = 0; c < count; ++c) s.sum += exp(logits[c * stride] - s.greatest);
  return s;
}

template <typename T>
SSD_HOST_DEVICE T probability(Softmax<T> s, T logit) {
  return exp(logit - s.greatest) / s.sum;
}

}  // namespace ssd_ops
