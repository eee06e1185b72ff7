#include "detection/detect.h"

namespace ssd_ops {
namespace {

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "detect(Tensor cls_scores, Tensor offset_preds, Tensor anchors, int activation, float score_threshold, "
      "float iou_threshold, int topk, int max_detections, float[] variances, bool clip, bool class_agnostic) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace
}  // namespace ssd_ops
