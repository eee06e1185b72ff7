// Whose rules an op follows; the numbers stand in the schemas for the names in Python. No torch header.
#pragma once

#include <cstdint>

namespace ssd_ops {

enum class Semantics : int64_t {
  kD2l,          // "Dive into Deep Learning", the default
  kMxnet,        // MXNet 1.9 on the CPU
  kTorchvision,  // torchvision's SSD
};

}  // namespace ssd_ops
