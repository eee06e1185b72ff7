#include "detection/multibox_detection.h"

#include "common/cpu_kernel.h"
#include "common/decode.h"
#include "common/order.h"
#include "common/share_out.h"
#include "common/simd.h"
#include "nms/grouped.h"

namespace ssd_ops {
namespace {

// The best probability of each anchor over the classes, and its class; a NaN counts as `if_nan`.
template <typename T>
SSD_HOST_DEVICE void best_class_lanes(const T* __restrict probs,  // [C, A]
                                      int64_t num_classes, int64_t num_anchors, T if_nan,
                                      T* __restrict scores,           // [A]
                                      int32_t* __restrict classes) {  // [A]
  for (int64_t c = 0; c < num_classes; ++c, probs += num_anchors) {
    for (int64_t i = 0; i < num_anchors; ++i) {
      const T prob = probs[i] == probs[i] ? probs[i] : if_nan;
      const bool better = c == 0 || prob > scores[i];
      classes[i] = better ? static_cast<int32_t>(c) : classes[i];
      scores[i] = better ? prob : scores[i];
    }
  }
}

SSD_SIMD(void, best_class,
         (const float* probs, int64_t num_classes, int64_t num_anchors, float if_nan, float* scores,
          int32_t* classes),
         (probs, num_classes, num_anchors, if_nan, scores, classes))
SSD_SIMD(void, best_class,
         (const double* probs, int64_t num_classes, int64_t num_anchors, double if_nan, double* scores,
          int32_t* classes),
         (probs, num_classes, num_anchors, if_nan, scores, classes))

template <typename T>
struct DetectionRules {
  T nms_threshold, pos_threshold;
  Decoding<T> decoding;
  bool class_agnostic;
  int64_t topk;
  Semantics semantics;
};

template <typename T>
class ImageDetection {
 public:
  ImageDetection(int64_t num_classes, int64_t num_anchors,
                 const T* anchors,  // [A, 4]
                 DetectionRules<T> rules)
      : rules_(rules),
        num_classes_(num_classes),
        num_anchors_(num_anchors),
        anchors_(anchors),
        scores_(static_cast<size_t>(num_anchors)),
        classes_(static_cast<size_t>(num_anchors)),
        boxes_(static_cast<size_t>(4 * num_anchors)) {}

  void run(const T* probs,    // [C, A], without the background
           const T* offsets,  // [A, 4]
           T* rows) {         // [A, 6]
    const bool d2l = rules_.semantics == Semantics::kD2l;
    best_class(probs, num_classes_, num_anchors_, d2l ? T(0) : T(-1), scores_.data(), classes_.data());
    decode_block(offsets, anchors_, num_anchors_, rules_.decoding, boxes_.data());
    if (d2l)
      write_d2l(rows);
    else
      write_mxnet(rows);
  }

 private:
  void write_d2l(T* rows) {
    sort_descending(scores_.data(), num_anchors_, order_);
    if (rules_.topk != -1 && rules_.topk < num_anchors_) order_.resize(static_cast<size_t>(rules_.topk));
    suppress(rules_.nms_threshold);
    is_kept_.assign(static_cast<size_t>(num_anchors_), 0);
    for (const int64_t position : kept_) {
      const int64_t anchor = order_[position];
      is_kept_[anchor] = 1;
      rows = write_row(anchor, true, rows);
    }
    for (int64_t anchor = 0; anchor < num_anchors_; ++anchor)
      if (!is_kept_[anchor]) rows = write_row(anchor, false, rows);
  }

  T* write_row(int64_t anchor, bool kept, T* row) const {
    const T score = scores_[anchor];
    const bool background = score < rules_.pos_threshold;
    return write(anchor, kept && !background, background ? T(1) - score : score, row);
  }

  T* write(int64_t anchor, bool labelled, T score, T* row) const {
    row[0] = labelled ? static_cast<T>(classes_[anchor]) : T(-1);
    row[1] = score;
    store_box(load_box(&boxes_[4 * anchor]), row + 2);
    return row + 6;
  }

  void write_mxnet(T* rows) {
    const T* const end = rows + 6 * num_anchors_;
    survivors_.clear();
    for (int64_t i = 0; i < num_anchors_; ++i)
      if (scores_[i] > T(-1) && !(scores_[i] < rules_.pos_threshold)) survivors_.push_back(i);
    const size_t count = survivors_.size();
    size_t in_nms = 0;
    if (rules_.nms_threshold > 0) {
      in_nms = count;
      if (rules_.topk != -1) in_nms = std::min(count, static_cast<size_t>(rules_.topk));
      survivor_scores_.clear();
      for (const int64_t anchor : survivors_) survivor_scores_.push_back(scores_[anchor]);
      sort_descending(survivor_scores_.data(), static_cast<int64_t>(count), order_);
      for (int64_t& index : order_) index = survivors_[index];
      order_.resize(in_nms);
      // At this threshold or more: more than the number before it.
      suppress(std::nextafter(rules_.nms_threshold, T(-1)));
      is_kept_.assign(in_nms, 0);
      for (const int64_t position : kept_) is_kept_[position] = 1;
      for (size_t i = 0; i < in_nms; ++i) rows = write(order_[i], is_kept_[i], scores_[order_[i]], rows);
    }
    // Without NMS all of them have their class. Past the topk all have -1, and MXNet has not sorted them.
    for (size_t i = in_nms; i < count; ++i)
      rows = write(survivors_[i], rules_.nms_threshold == 0, scores_[survivors_[i]], rows);
    while (rows != end) *rows++ = T(-1);
  }

  // Makes kept_ the positions in order_ that NMS keeps.
  void suppress(T threshold) {
    const OverlapLimit<T> limit{threshold, Metric::kIou};
    const auto box_at = [&](int64_t i) { return load_box(&boxes_[4 * i]); };
    if (rules_.class_agnostic)
      greedy_.run(order_, box_at, limit, kept_);
    else
      grouped_.run(order_, box_at, [&](int64_t i) { return classes_[i]; }, limit, kept_);
  }

  DetectionRules<T> rules_;
  int64_t num_classes_, num_anchors_;
  const T* anchors_;
  std::vector<T> scores_, survivor_scores_;
  std::vector<int32_t> classes_;
  std::vector<T> boxes_;
  std::vector<int64_t> order_, kept_, survivors_;
  std::vector<uint8_t> is_kept_;
  GreedyNms<T> greedy_;
  GroupedNms<T> grouped_;
};

Tensor multibox_detection_cpu(const Tensor& cls_probs,     // [B, C+1, A]
                              const Tensor& offset_preds,  // [B, 4A]
                              const Tensor& anchors,       // [A, 4] or [1, A, 4]
                              double nms_threshold, double pos_threshold, std::vector<double> variances,
                              bool clip, bool class_agnostic, int64_t topk, int64_t semantics) {
  check_multibox_detection(cls_probs, offset_preds, anchors, nms_threshold, pos_threshold, variances, topk,
                           semantics);
  const int64_t num_images = cls_probs.size(0), num_rows = cls_probs.size(1), num_anchors = cls_probs.size(2);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor out = new_real<T>(cls_probs, {num_images, num_anchors, 6});
        if (out.numel() == 0) return out;
        const Reader<T> read_probs(cls_probs), read_offsets(offset_preds), read_anchors(anchors);
        std::vector<T> anchor_buffer;
        const T* anchor_rows = read_anchors.read(0, 4 * num_anchors, anchor_buffer);
        const DetectionRules<T> rules{static_cast<T>(nms_threshold),
                                      static_cast<T>(pos_threshold),
                                      to_decoding<T>(variances, to_limits(clip)),
                                      class_agnostic,
                                      topk,
                                      static_cast<Semantics>(semantics)};
        T* rows = data<T>(out);
        share_out(num_images, [&](const auto& next) {
          ImageDetection<T> detection(num_rows - 1, num_anchors, anchor_rows, rules);
          std::vector<T> prob_buffer, offset_buffer;
          for (int64_t image; next(image);) {
            detection.run(read_probs.read((image * num_rows + 1) * num_anchors, (num_rows - 1) * num_anchors,
                                          prob_buffer),
                          read_offsets.read(image * 4 * num_anchors, 4 * num_anchors, offset_buffer),
                          rows + image * num_anchors * 6);
          }
        });
        return out;
      },
      cls_probs, offset_preds, anchors);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_detection(Tensor cls_probs, Tensor offset_preds, Tensor anchors, float nms_threshold, "
      "float pos_threshold, float[] variances, bool clip, bool class_agnostic, int topk, int semantics) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_detection", SSD_CPU_KERNEL(multibox_detection));
}

}  // namespace
}  // namespace ssd_ops
