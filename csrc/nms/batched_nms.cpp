#include "nms/batched_nms.h"

#include "common/cpu_kernel.h"
#include "common/order.h"
#include "nms/grouped.h"

namespace ssd_ops {
namespace {

Tensor batched_nms_cpu(const Tensor& boxes,   // [N, 4]
                       const Tensor& scores,  // [N]
                       const Tensor& idxs,    // [N] int64
                       double iou_threshold, int64_t metric) {
  check_batched_nms(boxes, scores, idxs, iou_threshold, metric);
  const int64_t count = boxes.size(0);
  const Tensor groups = as_contiguous(idxs);
  const int64_t* group_data = const_data<int64_t>(groups);
  std::vector<int64_t> order, kept;
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    std::vector<T> box_buffer;
    std::vector<S> score_buffer;
    const Reader<T> read_boxes(boxes);
    const T* rows = read_boxes.read(0, 4 * count, box_buffer);
    sort_descending(Reader<S>(scores).read(0, count, score_buffer), count, order);
    GroupedNms<T>().run(
        order, [&](int64_t i) { return load_box(rows + 4 * i); }, [&](int64_t i) { return group_data[i]; },
        overlap_limit<T>(iou_threshold, metric), kept);
  };
  dispatch_boxes_and_scores(run, boxes, scores);
  Tensor out = new_integers(boxes, {static_cast<int64_t>(kept.size())});
  int64_t* indices = data<int64_t>(out);
  for (const int64_t position : kept) *indices++ = order[position];
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, int metric) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("batched_nms", SSD_CPU_KERNEL(batched_nms));
}

}  // namespace
}  // namespace ssd_ops
