#include "detection/multibox_detection.h"

#include "common/decode.h"
#include "common/order.h"
#include "common/simd.h"
#include "nms/greedy.h"

namespace ssd_ops {
namespace {

// The best probability of each anchor over the rows of `probs` [C, A] and its class.
template <typename T>
SSD_HOST_DEVICE void best_class_lanes(const T* __restrict probs, int64_t num_classes, int64_t num_anchors,
                                      T* __restrict scores, int32_t* __restrict classes) {
  for (int64_t c = 0; c < num_classes; ++c, probs += num_anchors) {
    for (int64_t i = 0; i < num_anchors; ++i) {
      const T prob = probs[i] == probs[i] ? probs[i] : T(0);
      const bool better = c == 0 || prob > scores[i];
      classes[i] = better ? static_cast<int32_t>(c) : classes[i];
      scores[i] = better ? prob : scores[i];
    }
  }
}

SSD_SIMD(void, best_class,
         (const float* probs, int64_t num_classes, int64_t num_anchors, float* scores, int32_t* classes),
         (probs, num_classes, num_anchors, scores, classes))
SSD_SIMD(void, best_class,
         (const double* probs, int64_t num_classes, int64_t num_anchors, double* scores, int32_t* classes),
         (probs, num_classes, num_anchors, scores, classes))

template <typename T>
class ImageDetector {
 public:
  ImageDetector(int64_t num_classes, int64_t num_anchors, const T* anchors, Variances<T> variances,
                T nms_threshold, T pos_threshold)
      : num_classes_(num_classes),
        num_anchors_(num_anchors),
        anchors_(anchors),
        variances_(variances),
        nms_threshold_(nms_threshold),
        pos_threshold_(pos_threshold),
        scores_(static_cast<size_t>(num_anchors)),
        classes_(static_cast<size_t>(num_anchors)),
        boxes_(static_cast<size_t>(4 * num_anchors)) {}

  // probs [C, A] without the background, offsets [A, 4] -> rows [A, 6].
  void detect(const T* probs, const T* offsets, T* rows) {
    best_class(probs, num_classes_, num_anchors_, scores_.data(), classes_.data());
    decode_block(offsets, anchors_, num_anchors_, variances_, boxes_.data());
    sort_descending(scores_.data(), num_anchors_, order_);
    greedy_.run(order_, [&](int64_t i) { return load_box(&boxes_[4 * i]); }, nms_threshold_, kept_);
    is_kept_.assign(static_cast<size_t>(num_anchors_), 0);
    for (const int64_t position : kept_) {
      const int64_t anchor = order_[position];
      is_kept_[anchor] = 1;
      write(anchor, static_cast<T>(classes_[anchor]), rows);
      rows += 6;
    }
    for (int64_t anchor = 0; anchor < num_anchors_; ++anchor) {
      if (is_kept_[anchor]) continue;
      write(anchor, T(-1), rows);
      rows += 6;
    }
  }

 private:
  void write(int64_t anchor, T label, T* row) const {
    const T score = scores_[anchor];
    const bool background = score < pos_threshold_;
    row[0] = background ? T(-1) : label;
    row[1] = background ? T(1) - score : score;
    store_box(load_box(&boxes_[4 * anchor]), row + 2);
  }

  int64_t num_classes_, num_anchors_;
  const T* anchors_;
  Variances<T> variances_;
  T nms_threshold_, pos_threshold_;
  std::vector<T> scores_;
  std::vector<int32_t> classes_;
  std::vector<T> boxes_;
  std::vector<int64_t> order_, kept_;
  std::vector<uint8_t> is_kept_;
  GreedyNms<T> greedy_;
};

Tensor multibox_detection_cpu(const Tensor& cls_probs, const Tensor& offset_preds, const Tensor& anchors,
                              double nms_threshold, double pos_threshold, std::vector<double> variances,
                              int64_t semantics) {
  check_multibox_detection(cls_probs, offset_preds, anchors, nms_threshold, pos_threshold, variances,
                           semantics);
  const int64_t num_images = cls_probs.size(0), num_rows = cls_probs.size(1), num_anchors = cls_probs.size(2);
  Tensor out = cls_probs;
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        out = new_real<T>(cls_probs, {num_images, num_anchors, 6});
        if (out.numel() == 0) return;
        const Reader<T> read_probs(cls_probs), read_offsets(offset_preds), read_anchors(anchors);
        std::vector<T> anchor_buffer;
        const T* anchor_rows = read_anchors.read(0, 4 * num_anchors, anchor_buffer);
        T* rows = data<T>(out);
        torch::stable::parallel_for(0, num_images, 1, [&](int64_t begin, int64_t end) {
          ImageDetector<T> detector(num_rows - 1, num_anchors, anchor_rows, to_variances<T>(variances),
                                    static_cast<T>(nms_threshold), static_cast<T>(pos_threshold));
          std::vector<T> prob_buffer, offset_buffer;
          for (int64_t image = begin; image < end; ++image) {
            detector.detect(read_probs.read((image * num_rows + 1) * num_anchors,
                                            (num_rows - 1) * num_anchors, prob_buffer),
                            read_offsets.read(image * 4 * num_anchors, 4 * num_anchors, offset_buffer),
                            rows + image * num_anchors * 6);
          }
        });
      },
      cls_probs, offset_preds, anchors);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_detection(Tensor cls_probs, Tensor offset_preds, Tensor anchors, float nms_threshold, "
      "float pos_threshold, float[] variances, bool clip, bool class_agnostic, int topk, int semantics) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_detection", TORCH_BOX(&multibox_detection_cpu));
}

}  // namespace
}  // namespace ssd_ops
