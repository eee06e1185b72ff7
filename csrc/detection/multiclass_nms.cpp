#include "detection/multiclass_nms.h"

#include "common/cpu_kernel.h"
#include "common/share_out.h"
#include "detection/selection.h"

namespace ssd_ops {
namespace {

template <typename T>
Detections run(const Tensor& boxes,   // [B, N, 4]
               const Tensor& scores,  // [B, N, C]
               SelectionRules<T> rules) {
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1), num_classes = scores.size(2);
  DetectionTensors<T> out(boxes, num_images, rules.max_detections);
  const Reader<T> read_boxes(boxes), read_scores(scores);
  share_out(num_images, [&](const auto& next) {
    Selection<T> selection(rules, num_boxes, num_classes);
    std::vector<T> box_buffer, score_buffer, tile(static_cast<size_t>(num_classes * kTile));
    for (int64_t image; next(image);) {
      selection.add_all([&](int64_t first, int64_t count) {
        const int64_t start = (image * num_boxes + first) * num_classes;
        to_tile(read_scores.read(start, count * num_classes, score_buffer), count, num_classes, tile.data());
        return tile.data();
      });
      const T* rows = read_boxes.read(4 * image * num_boxes, 4 * num_boxes, box_buffer);
      selection.finish([&](int64_t i) { return load_box(rows + 4 * i); }, out.rows(image));
    }
  });
  return out.tensors();
}

Detections multiclass_nms_cpu(const Tensor& boxes,   // [B, N, 4]
                              const Tensor& scores,  // [B, N, C]
                              double score_threshold, double iou_threshold, int64_t topk,
                              int64_t max_detections, bool class_agnostic, int64_t metric,
                              bool best_class_only, std::vector<int64_t> level_counts,
                              int64_t topk_per_level) {
  check_multiclass_nms(boxes, scores, score_threshold, iou_threshold, topk, max_detections, metric,
                       level_counts, topk_per_level);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const SelectionRules<T> rules(score_threshold, iou_threshold, topk, max_detections, class_agnostic,
                                      metric, {best_class_only, level_counts, topk_per_level});
        return run<T>(boxes, scores, rules);
      },
      boxes, scores);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multiclass_nms(Tensor boxes, Tensor scores, float score_threshold, float iou_threshold, int topk, "
      "int max_detections, bool class_agnostic, int metric, bool best_class_only, int[] level_counts, "
      "int topk_per_level) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multiclass_nms", SSD_CPU_KERNEL(multiclass_nms));
}

}  // namespace
}  // namespace ssd_ops
