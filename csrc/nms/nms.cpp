#include "nms/nms.h"

#include "nms/image_nms.h"

namespace ssd_ops {
namespace {

Tensor nms_cpu(const Tensor& boxes,   // [N, 4]
               const Tensor& scores,  // [N]
               double iou_threshold, int64_t metric) {
  check_nms(boxes, scores, iou_threshold, metric);
  const auto run = [&](auto box, auto score) -> std::vector<int64_t> {
    using T = decltype(box);
    using S = decltype(score);
    return ImageNms<T, S>(overlap_limit<T>(iou_threshold, metric))
        .run(Reader<T>(boxes), Reader<S>(scores), 0, boxes.size(0));
  };
  const std::vector<int64_t> kept = dispatch_boxes_and_scores(run, boxes, scores);
  Tensor out = new_integers(boxes, {static_cast<int64_t>(kept.size())});
  std::copy(kept.begin(), kept.end(), data<int64_t>(out));
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold, int metric) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

}  // namespace
}  // namespace ssd_ops
