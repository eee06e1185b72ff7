#include "nms/nms.h"

#include "nms/image.h"

namespace ssd_ops {
namespace {

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, iou_threshold);
  std::vector<int64_t> kept;
  const auto run = [&](auto box_zero, auto score_zero) {
    using T = decltype(box_zero);
    using S = decltype(score_zero);
    kept = ImageNms<T, S>(round_down<T>(iou_threshold))
               .run(Reader<T>(boxes), Reader<S>(scores), 0, boxes.size(0));
  };
  dispatch_real([&](auto box) { dispatch_real([&](auto score) { run(box, score); }, scores); }, boxes);
  Tensor out = torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), data<int64_t>(out));
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

}  // namespace
}  // namespace ssd_ops
