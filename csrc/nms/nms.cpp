#include "nms/nms.h"

#include "common/cpu_kernel.h"
#include "nms/image_nms.h"

namespace ssd_ops {
namespace {

// For so many boxes a thread keeps its room, at most 100 kB: to allocate it is a fifth of the time of a call.
constexpr int64_t kSmall = 1024;

Tensor nms_cpu(const Tensor& boxes,   // [N, 4]
               const Tensor& scores,  // [N]
               double iou_threshold, int64_t metric) {
  check_nms(boxes, scores, iou_threshold, metric);
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    const auto run_in = [&](ImageNms<T, S>& nms) {
      const std::vector<int64_t>& kept = nms.run(Reader<T>(boxes), Reader<S>(scores), 0, boxes.size(0),
                                                 overlap_limit<T>(iou_threshold, metric));
      Tensor out = new_integers(boxes, {static_cast<int64_t>(kept.size())});
      std::copy(kept.begin(), kept.end(), data<int64_t>(out));
      return out;
    };
    if (boxes.size(0) > kSmall) {
      ImageNms<T, S> nms(true);
      return run_in(nms);
    }
    thread_local ImageNms<T, S> nms(false);
    return run_in(nms);
  };
  return dispatch_boxes_and_scores(run, boxes, scores);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold, int metric) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("nms", SSD_CPU_KERNEL(nms));
}

}  // namespace
}  // namespace ssd_ops
