#include "target/multibox_target.h"

#include <cstring>

#include "common/activation.h"
#include "common/cpu_kernel.h"
#include "common/mining.h"
#include "common/share_out.h"
#include "common/smallest.h"
#include "target/matching.h"
#include "target/rules.h"

namespace ssd_ops {
namespace {

template <typename T>
struct GroundTruths {
  std::vector<Box<T>> boxes;
  std::vector<int64_t> classes;
};

// The rows that are not padding, in their order.
template <typename T>
void read_gts(const T* rows,  // [count, 5]
              int64_t count, Semantics semantics, GroundTruths<T>& gts) {
  gts.boxes.clear();
  gts.classes.clear();
  for (int64_t i = 0; i < count; ++i, rows += 5) {
    const Box<T> box = load_box(rows + 1);
    if (!is_ground_truth(rows[0], box, semantics)) continue;
    gts.boxes.push_back(box);
    gts.classes.push_back(static_cast<int64_t>(rows[0]));
  }
}

// The probability of background of `count` anchors. The same operations, in the same order, as softmax_of and
// probability have for each.
template <typename T>
SSD_HOST_DEVICE void background_block_lanes(const T* __restrict logits,  // [num_rows, count], `stride` apart
                                            int64_t num_rows, int64_t stride, int64_t count,
                                            T* __restrict sum,    // [count], room to work in
                                            T* __restrict out) {  // [count]
  for (int64_t i = 0; i < count; ++i) {
    out[i] = logits[i];
    sum[i] = 0;
  }
  for (int64_t c = 1; c < num_rows; ++c)
    for (int64_t i = 0; i < count; ++i)
      out[i] = logits[c * stride + i] > out[i] ? logits[c * stride + i] : out[i];
  for (int64_t c = 0; c < num_rows; ++c)
    for (int64_t i = 0; i < count; ++i) sum[i] += exp(logits[c * stride + i] - out[i]);
  for (int64_t i = 0; i < count; ++i) out[i] = exp(logits[i] - out[i]) / sum[i];
}

SSD_SIMD(void, background_block,
         (const float* logits, int64_t num_rows, int64_t stride, int64_t count, float* sum, float* out),
         (logits, num_rows, stride, count, sum, out))
SSD_SIMD(void, background_block,
         (const double* logits, int64_t num_rows, int64_t stride, int64_t count, double* sum, double* out),
         (logits, num_rows, stride, count, sum, out))

struct MatchCounts {
  int64_t matched, candidates;
};

// The key of each negative that may be mined: the smaller, the less it looks like background.
template <typename T>
SSD_HOST_DEVICE MatchCounts mining_keys_lanes(const T* __restrict background,     // [count]
                                              const int32_t* __restrict matched,  // [count]
                                              const T* __restrict best_iou,       // [count]
                                              int64_t count, T iou_below,
                                              LossKey<T>* __restrict keys) {  // [count]
  MatchCounts counts{0, 0};
  for (int64_t i = 0; i < count; ++i) {
    const bool is_candidate = (matched[i] == -1) & (best_iou[i] < iou_below);
    const LossKey<T> key = loss_key(-background[i]);
    keys[i] = is_candidate ? key : kNoKey<LossKey<T>>;
    counts.matched += matched[i] >= 0 ? 1 : 0;
    counts.candidates += is_candidate ? 1 : 0;
  }
  return counts;
}

SSD_SIMD(MatchCounts, mining_keys,
         (const float* background, const int32_t* matched, const float* best_iou, int64_t count,
          float iou_below, uint32_t* keys),
         (background, matched, best_iou, count, iou_below, keys))
SSD_SIMD(MatchCounts, mining_keys,
         (const double* background, const int32_t* matched, const double* best_iou, int64_t count,
          double iou_below, uint64_t* keys),
         (background, matched, best_iou, count, iou_below, keys))

// Leaves class 0 only to the negatives that look least like background.
template <typename T>
class NegativeMining {
 public:
  explicit NegativeMining(MiningRules rules) : rules_(rules) {}

  void mine(const T* logits,  // [num_rows, A]
            int64_t num_rows, int64_t num_anchors, const std::vector<int32_t>& matched,
            const Matcher<T>& matcher,
            int64_t* cls_labels) {  // [A]
    background_.resize(static_cast<size_t>(num_anchors));
    keys_.resize(static_cast<size_t>(num_anchors));
    sums_.resize(static_cast<size_t>(kBlock));
    for (int64_t first = 0; first < num_anchors; first += kBlock)
      background_block(logits + first, num_rows, num_anchors, std::min(kBlock, num_anchors - first),
                       sums_.data(), &background_[first]);
    const MatchCounts counts = mining_keys(background_.data(), matched.data(), matcher.best_ious(),
                                           num_anchors, static_cast<T>(rules_.threshold), keys_.data());
    // The product in float32 is MXNet's.
    const int64_t wanted =
        negatives_wanted<float>(counts.matched, counts.candidates, rules_.ratio, rules_.min_negatives);
    chosen_.assign(static_cast<size_t>(num_anchors), 0);
    choose_smallest(keys_, wanted, chosen_.data());
    for (size_t i = 0; i < matched.size(); ++i)
      if (matched[i] < 0) cls_labels[i] = chosen_[i] ? 0 : rules_.ignore_label;
  }

 private:
  MiningRules rules_;
  std::vector<T> background_, sums_;
  std::vector<LossKey<T>> keys_;
  std::vector<uint8_t> chosen_;
};

template <typename T>
void write_targets(const AnchorBlocks<T>& anchors, const GroundTruths<T>& gts,
                   const std::vector<int32_t>& matched, const TargetRules<T>& rules,
                   T* offsets,             // [A, 4]
                   T* masks,               // [A, 4]
                   int64_t* cls_labels) {  // [A]
  const size_t count = static_cast<size_t>(anchors.count);
  std::memset(offsets, 0, 4 * count * sizeof(T));
  std::memset(masks, 0, 4 * count * sizeof(T));
  std::fill_n(cls_labels, count, gts.boxes.empty() ? rules.label_without_gts : 0);
  for (size_t i = 0; i < count; ++i) {
    if (matched[i] < 0) continue;
    const Offset<T> offset =
        encode(gts.boxes[matched[i]], anchors.box(static_cast<int64_t>(i)), rules.encoding);
    store_box<T>({offset.x, offset.y, offset.w, offset.h}, offsets + 4 * i);
    store_box<T>({1, 1, 1, 1}, masks + 4 * i);
    cls_labels[i] = gts.classes[matched[i]] + 1;
  }
}

// No threshold leaves an anchor between two here: -2 is one that is ignored.
inline void write_ignored(const std::vector<int32_t>& matched, int64_t ignore_label,
                          int64_t* cls_labels) {  // [A]
  for (size_t i = 0; i < matched.size(); ++i)
    if (matched[i] == -2) cls_labels[i] = ignore_label;
}

// Of all images, to outputs that are not empty.
template <typename T>
void write_images(const Tensor& anchors,                   // [A, 4] or [1, A, 4]
                  const Tensor& labels,                    // [B, G, 5]
                  const std::optional<Tensor>& cls_preds,  // [B, C+1, A]
                  const IgnoredRegions<T>& regions, const MatchRules<T>& match, const TargetRules<T>& target,
                  const MiningRules& mining,
                  T* offsets,             // [B, A, 4]
                  T* masks,               // [B, A, 4]
                  int64_t* cls_labels) {  // [B, A]
  const int64_t num_gts = labels.size(1), num_anchors = anchors.numel() / 4;
  const AnchorBlocks<T> blocks = lay_out_anchors<T>(anchors);
  const Reader<T> read_labels(labels), read_preds(mining.is_on() ? *cls_preds : labels);
  const int64_t num_rows = mining.is_on() ? cls_preds->size(1) : 0;
  // One image is enough work for a task: at 5,444 anchors it writes 218 kB.
  share_out(labels.size(0), [&](const auto& next) {
    Matcher<T> matcher(blocks);
    NegativeMining<T> negatives(mining);
    GroundTruths<T> gts;
    std::vector<T> label_buffer, pred_buffer;
    std::vector<int32_t> matched;
    for (int64_t image; next(image);) {
      const int64_t first = image * num_anchors, size = num_rows * num_anchors;
      read_gts(read_labels.read(image * num_gts * 5, num_gts * 5, label_buffer), num_gts, target.semantics,
               gts);
      matcher.match(gts.boxes, match, matched);
      matcher.ignore(regions, image, matched);
      write_targets(blocks, gts, matched, target, offsets + 4 * first, masks + 4 * first, cls_labels + first);
      if (regions.boxes) write_ignored(matched, mining.ignore_label, cls_labels + first);
      if (mining.is_on())
        negatives.mine(read_preds.read(image * size, size, pred_buffer), num_rows, num_anchors, matched,
                       matcher, cls_labels + first);
    }
  });
}

Targets multibox_target_cpu(const Tensor& anchors,            // [A, 4] or [1, A, 4]
                            const Tensor& labels,             // [B, G, 5]
                            std::optional<Tensor> cls_preds,  // [B, C+1, A]
                            double iou_threshold, std::vector<double> variances, double negative_mining_ratio,
                            double negative_mining_threshold, int64_t min_negatives, int64_t ignore_label,
                            int64_t semantics, int64_t coding,
                            std::optional<Tensor> ignore_boxes,  // [B, K, 4]
                            double ignore_threshold) {
  check_multibox_target(anchors, labels, cls_preds, iou_threshold, variances, negative_mining_ratio,
                        negative_mining_threshold, min_negatives, semantics, coding, ignore_boxes,
                        ignore_threshold);
  const int64_t num_images = labels.size(0), num_anchors = anchors.numel() / 4;
  const Semantics kind = static_cast<Semantics>(semantics);
  const MiningRules mining{negative_mining_ratio, negative_mining_threshold, min_negatives, ignore_label};
  return dispatch_real(
      [&](auto zero) -> Targets {
        using T = decltype(zero);
        Tensor offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
        Tensor masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
        Tensor cls_labels = new_integers(anchors, {num_images, num_anchors});
        if (cls_labels.numel() > 0)
          write_images(anchors, labels, cls_preds, IgnoredRegions<T>(ignore_boxes, ignore_threshold),
                       match_rules<T>(kind, iou_threshold),
                       target_rules<T>(kind, to_variances<T>(variances), coding, ignore_label), mining,
                       data<T>(offsets), data<T>(masks), data<int64_t>(cls_labels));
        return {offsets, masks, cls_labels};
      },
      anchors, labels, cls_preds, ignore_boxes);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_target(Tensor anchors, Tensor labels, Tensor? cls_preds, float iou_threshold, "
      "float[] variances, float negative_mining_ratio, float negative_mining_threshold, int min_negatives, "
      "int ignore_label, int semantics, int coding, Tensor? ignore_boxes, float ignore_threshold) -> "
      "(Tensor, Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_target", SSD_CPU_KERNEL(multibox_target));
}

}  // namespace
}  // namespace ssd_ops
