#include "target/assign_anchors.h"

namespace ssd_ops {
namespace {

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "assign_anchors(Tensor anchors, Tensor gt_boxes, Tensor? gt_counts, float iou_threshold, "
      "float background_threshold, int force_match) -> (Tensor, Tensor)");
}

}  // namespace
}  // namespace ssd_ops
