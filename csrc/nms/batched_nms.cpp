#include "nms/batched_nms.h"

namespace ssd_ops {
namespace {

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}

}  // namespace
}  // namespace ssd_ops
