// A stand-in for CUDA's header of 16-bit floats.
#pragma once

#include <torch/headeronly/util/Half.h>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  return static_cast<float>(torch::headeronly::Half(h.bits, torch::headeronly::Half::from_bits()));
}
