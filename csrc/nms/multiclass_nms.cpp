#include "nms/multiclass_nms.h"

namespace ssd_ops {
namespace {

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multiclass_nms(Tensor boxes, Tensor scores, float score_threshold, float iou_threshold, int topk, "
      "int max_detections, bool class_agnostic) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace
}  // namespace ssd_ops
