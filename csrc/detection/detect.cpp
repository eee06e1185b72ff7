#include "detection/detect.h"

#include "common/cpu_kernel.h"
#include "common/share_out.h"
#include "common/simd.h"
#include "detection/selection.h"

namespace ssd_ops {
namespace {

// Softmax over the classes of kTile anchors at once. The same operations, in the same order, as softmax_of
// and probability have for each.
template <typename T>
SSD_HOST_DEVICE void softmax_tile_lanes(T* __restrict tile,  // [num_rows, kTile]
                                        int64_t num_rows) {
  T greatest[kTile], sum[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    greatest[i] = tile[i];
    sum[i] = 0;
  }
  for (int64_t c = 1; c < num_rows; ++c)
    for (int64_t i = 0; i < kTile; ++i)
      greatest[i] = tile[c * kTile + i] > greatest[i] ? tile[c * kTile + i] : greatest[i];
  for (int64_t c = 0; c < num_rows; ++c)
    for (int64_t i = 0; i < kTile; ++i) {
      const T power = exp(tile[c * kTile + i] - greatest[i]);
      tile[c * kTile + i] = power;
      sum[i] += power;
    }
  for (int64_t c = 1; c < num_rows; ++c)  // the background is not asked for
    for (int64_t i = 0; i < kTile; ++i) tile[c * kTile + i] /= sum[i];
}

SSD_SIMD(void, softmax_tile, (float* tile, int64_t num_rows), (tile, num_rows))
SSD_SIMD(void, softmax_tile, (double* tile, int64_t num_rows), (tile, num_rows))

// Sigmoid of a row of the tile, unless no logit of it is over `least`.
template <typename T>
SSD_HOST_DEVICE void sigmoid_row_lanes(T* __restrict row,  // [kTile]
                                       T least) {
  typename FloatTraits<T>::Signed any = 0;
  for (int64_t i = 0; i < kTile; ++i) any |= row[i] > least ? 1 : 0;
  for (int64_t i = 0; i < kTile; ++i) row[i] = any ? sigmoid(row[i]) : T(0);
}

SSD_SIMD(void, sigmoid_row, (float* row, float least), (row, least))
SSD_SIMD(void, sigmoid_row, (double* row, double least), (row, least))

// A logit of which the sigmoid is surely not over the threshold: lower by far more than rounding moves it.
template <typename T>
T least_logit(double threshold) {
  if (threshold >= 1) return std::numeric_limits<T>::max();
  return static_cast<T>(std::log(threshold / (1 - threshold)) - 1);
}

template <typename T>
Detections run(const Tensor& cls_scores,    // [B, A, C+1] or [B, A, C]
               const Tensor& offset_preds,  // [B, A, 4] or [B, 4A]
               const Tensor& anchors,       // [A, 4] or [1, A, 4]
               Activation activation, const Decoding<T>& decoding, const SelectionRules<T>& rules) {
  const int64_t num_images = cls_scores.size(0), num_anchors = cls_scores.size(1), width = cls_scores.size(2);
  const int64_t background = activation == Activation::kSoftmax ? 1 : 0;  // rows before the classes
  const T least = least_logit<T>(static_cast<double>(rules.score_threshold));
  DetectionTensors<T> out(cls_scores, num_images, rules.max_detections);
  const Reader<T> read_scores(cls_scores), read_offsets(offset_preds), read_anchors(anchors);
  std::vector<T> anchor_buffer;
  const T* anchor_rows = read_anchors.read(0, 4 * num_anchors, anchor_buffer);
  share_out(num_images, [&](const auto& next) {
    Selection<T> selection(rules, num_anchors, width - background);
    std::vector<T> score_buffer, tile(static_cast<size_t>(width * kTile));
    for (int64_t image; next(image);) {
      selection.add_all([&](int64_t first, int64_t count) {
        const int64_t start = (image * num_anchors + first) * width;
        to_tile(read_scores.read(start, count * width, score_buffer), count, width, tile.data());
        if (activation == Activation::kSoftmax) softmax_tile(tile.data(), width);
        if (activation == Activation::kSigmoid)
          for (int64_t c = 0; c < width; ++c) sigmoid_row(&tile[c * kTile], least);
        return tile.data() + background * kTile;
      });
      const auto box_at = [&](int64_t anchor) {
        std::vector<T> buffer;
        const T* o = read_offsets.read(4 * (image * num_anchors + anchor), 4, buffer);
        return decode({o[0], o[1], o[2], o[3]}, load_box(anchor_rows + 4 * anchor), decoding);
      };
      selection.finish(box_at, out.rows(image));
    }
  });
  return out.tensors();
}

Detections detect_cpu(const Tensor& cls_scores,    // [B, A, C+1] or [B, A, C]
                      const Tensor& offset_preds,  // [B, A, 4] or [B, 4A]
                      const Tensor& anchors,       // [A, 4] or [1, A, 4]
                      int64_t activation, double score_threshold, double iou_threshold, int64_t topk,
                      int64_t max_detections, std::vector<double> variances, std::vector<double> clip,
                      bool class_agnostic, int64_t metric, int64_t coding, double max_log_size,
                      bool best_class_only, std::vector<int64_t> level_counts, int64_t topk_per_level) {
  check_detect(cls_scores, offset_preds, anchors, activation, score_threshold, iou_threshold, topk,
               max_detections, variances, clip, metric, coding, max_log_size, level_counts, topk_per_level);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const SelectionRules<T> rules(score_threshold, iou_threshold, topk, max_detections, class_agnostic,
                                      metric, {best_class_only, level_counts, topk_per_level});
        return run<T>(cls_scores, offset_preds, anchors, static_cast<Activation>(activation),
                      to_decoding<T>(variances, clip, coding, max_log_size), rules);
      },
      cls_scores, offset_preds, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "detect(Tensor cls_scores, Tensor offset_preds, Tensor anchors, int activation, float score_threshold, "
      "float iou_threshold, int topk, int max_detections, float[] variances, float[] clip, "
      "bool class_agnostic, int metric, int coding, float max_log_size, bool best_class_only, "
      "int[] level_counts, int topk_per_level) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("detect", SSD_CPU_KERNEL(detect));
}

}  // namespace
}  // namespace ssd_ops
