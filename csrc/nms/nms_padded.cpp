#include "nms/nms_padded.h"

#include <tuple>

#include "common/cpu_kernel.h"
#include "common/share_out.h"
#include "nms/image_nms.h"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes,   // [B, N, 4]
                                          const Tensor& scores,  // [B, N]
                                          double iou_threshold, int64_t metric) {
  check_nms_padded(boxes, scores, iou_threshold, metric);
  const int64_t num_images = boxes.size(0), count = boxes.size(1);
  Tensor indices = new_integers(boxes, {num_images, count}), counts = new_integers(boxes, {num_images});
  int64_t *index_data = data<int64_t>(indices), *count_data = data<int64_t>(counts);
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    const Reader<T> read_boxes(boxes);
    const Reader<S> read_scores(scores);
    const OverlapLimit<T> limit = overlap_limit<T>(iou_threshold, metric);
    share_out(num_images, [&](const auto& next) {
      ImageNms<T, S> nms(num_images == 1);
      for (int64_t image; next(image);) {
        const std::vector<int64_t>& kept = nms.run(read_boxes, read_scores, image, count, limit);
        int64_t* row = std::copy(kept.begin(), kept.end(), index_data + image * count);
        std::fill(row, index_data + (image + 1) * count, int64_t{-1});
        count_data[image] = static_cast<int64_t>(kept.size());
      }
    });
  };
  dispatch_boxes_and_scores(run, boxes, scores);
  return {indices, counts};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int metric) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("nms_padded", SSD_CPU_KERNEL(nms_padded));
}

}  // namespace
}  // namespace ssd_ops
