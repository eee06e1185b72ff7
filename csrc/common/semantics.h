// Whose rules an op follows; the numbers stand in the schemas for the names in Python. No torch header.
#pragma once

#include <cstdint>

namespace ssd_ops {

constexpr int64_t kSemanticsD2l = 0;          // "Dive into Deep Learning", the default
constexpr int64_t kSemanticsMxnet = 1;        // MXNet 1.9 on the CPU
constexpr int64_t kSemanticsTorchvision = 2;  // torchvision's SSD

}  // namespace ssd_ops
