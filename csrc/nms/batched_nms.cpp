#include "nms/batched_nms.h"

#include "common/order.h"
#include "nms/grouped.h"

namespace ssd_ops {
namespace {

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  check_batched_nms(boxes, scores, idxs, iou_threshold);
  const int64_t count = boxes.size(0);
  std::vector<int64_t> order, kept;
  dispatch_real(
      [&](auto zero) {
        using S = decltype(zero);
        std::vector<S> buffer;
        sort_descending(Reader<S>(scores).read(0, count, buffer), count, order);
      },
      scores);
  const Tensor groups = torch::stable::contiguous(idxs);
  const int64_t* group_data = static_cast<const int64_t*>(groups.const_data_ptr());
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        std::vector<T> buffer;
        const Reader<T> reader(boxes);
        const T* rows = reader.read(0, 4 * count, buffer);
        GroupedNms<T> grouped;
        grouped.run(
            order, [&](int64_t i) { return load_box(rows + 4 * i); },
            [&](int64_t i) { return group_data[i]; }, round_down<T>(iou_threshold), kept);
      },
      boxes);
  Tensor out = torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  int64_t* indices = data<int64_t>(out);
  for (const int64_t position : kept) *indices++ = order[position];
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
}

}  // namespace
}  // namespace ssd_ops
