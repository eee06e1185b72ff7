#include "nms/nms.h"

#include "common/order.h"
#include "nms/greedy.h"

namespace ssd_ops {
namespace {

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, iou_threshold);
  const int64_t count = boxes.size(0);
  std::vector<int64_t> order, kept;
  const auto sort = [&](auto zero) {
    using S = decltype(zero);
    std::vector<S> buffer;
    sort_descending(Reader<S>(scores).read(0, count, buffer), count, order);
  };
  // Scores are sorted in their own precision: float64 boxes do not make float32 scores any finer.
  dispatch_real(sort, scores);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        std::vector<T> buffer;
        const Reader<T> reader(boxes);
        const T* rows = reader.read(0, 4 * count, buffer);
        GreedyNms<T> greedy;
        greedy.run(
            order, [&](int64_t i) { return load_box(rows + 4 * i); }, round_down<T>(iou_threshold), kept);
      },
      boxes);
  Tensor out = torch::stable::new_empty(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  int64_t* indices = data<int64_t>(out);
  for (const int64_t position : kept) *indices++ = order[position];
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
