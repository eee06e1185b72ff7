#include "target/multibox_target.h"

#include <cstring>
#include <tuple>

#include "common/activation.h"
#include "common/order.h"
#include "target/ground_truth.h"
#include "target/matching.h"

namespace ssd_ops {
namespace {

template <typename T>
struct GroundTruths {
  std::vector<Box<T>> boxes;
  std::vector<int64_t> classes;
};

// The rows that are not padding, in their order.
template <typename T>
void read_gts(const T* rows, int64_t count, int64_t semantics, GroundTruths<T>& gts) {
  gts.boxes.clear();
  gts.classes.clear();
  for (int64_t i = 0; i < count; ++i, rows += 5) {
    const Box<T> box = load_box(rows + 1);
    if (!is_ground_truth(rows[0], box, semantics)) continue;
    gts.boxes.push_back(box);
    gts.classes.push_back(static_cast<int64_t>(rows[0]));
  }
}

template <typename T>
MatchRules<T> rules_of(int64_t semantics, double iou_threshold) {
  const T threshold = static_cast<T>(iou_threshold), infinity = std::numeric_limits<T>::infinity();
  if (semantics == kSemanticsMxnet) {
    // More than the threshold, in a form of "at least"; MXNet takes 0 for none.
    const T from = threshold > 0 ? std::nextafter(threshold, infinity) : infinity;
    return {from, from, Force::kBipartite, static_cast<T>(kMxnetMinIou)};
  }
  return {threshold, threshold, semantics == kSemanticsD2l ? Force::kBipartite : Force::kArgmax};
}

// The probability of background of `count` anchors; logits [C+1, count] with rows `stride` apart. The same
// operations, in the same order, as softmax_of and probability have for each.
template <typename T>
SSD_HOST_DEVICE void background_block_lanes(const T* __restrict logits, int64_t num_rows, int64_t stride,
                                            int64_t count, T* __restrict sum, T* __restrict out) {
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

struct Mining {
  double ratio, threshold;  // ratio -1: off
  int64_t min_negatives, ignore_label;
};

// Leaves class 0 only to the negatives least taken for background.
template <typename T>
class Miner {
 public:
  explicit Miner(Mining mining) : mining_(mining) {}

  void mine(const T* logits, int64_t num_rows, int64_t num_anchors, const std::vector<int32_t>& matched,
            const Matcher<T>& matcher, int64_t* cls_labels) {
    background_.resize(static_cast<size_t>(num_anchors));
    sums_.resize(static_cast<size_t>(kBlock));
    for (int64_t first = 0; first < num_anchors; first += kBlock)
      background_block(logits + first, num_rows, num_anchors, std::min(kBlock, num_anchors - first),
                       sums_.data(), &background_[first]);
    keys_.clear();
    candidates_.clear();
    int64_t num_matched = 0;
    for (int64_t i = 0; i < num_anchors; ++i) {
      if (matched[i] >= 0) {
        ++num_matched;
        continue;
      }
      cls_labels[i] = mining_.ignore_label;
      if (!(matcher.best_iou(i) < static_cast<T>(mining_.threshold))) continue;
      keys_.push_back(loss_key(-background_[i]));
      candidates_.push_back(i);
    }
    const int64_t most = static_cast<int64_t>(keys_.size());
    // The product in float32 is MXNet's; it may exceed any integer.
    const float by_ratio = static_cast<float>(num_matched) * static_cast<float>(mining_.ratio);
    int64_t wanted = by_ratio < static_cast<float>(most) ? static_cast<int64_t>(by_ratio) : most;
    wanted = std::min(std::max(wanted, mining_.min_negatives), most);
    choose_smallest(keys_, wanted, spare_, [&](size_t i) { cls_labels[candidates_[i]] = 0; });
  }

 private:
  Mining mining_;
  std::vector<T> background_, sums_;
  std::vector<typename FloatTraits<T>::Bits> keys_, spare_;
  std::vector<int64_t> candidates_;
};

template <typename T>
void write_targets(const AnchorBlocks<T>& anchors, const GroundTruths<T>& gts,
                   const std::vector<int32_t>& matched, Variances<T> variances, T eps, T* offsets, T* masks,
                   int64_t* cls_labels) {
  const size_t count = static_cast<size_t>(anchors.count);
  std::memset(offsets, 0, 4 * count * sizeof(T));
  std::memset(masks, 0, 4 * count * sizeof(T));
  std::memset(cls_labels, 0, count * sizeof(int64_t));
  for (size_t i = 0; i < count; ++i) {
    if (matched[i] < 0) continue;
    const Offset<T> offset =
        encode(gts.boxes[matched[i]], anchors.box(static_cast<int64_t>(i)), variances, eps);
    store_box<T>({offset.x, offset.y, offset.w, offset.h}, offsets + 4 * i);
    store_box<T>({1, 1, 1, 1}, masks + 4 * i);
    cls_labels[i] = gts.classes[matched[i]] + 1;
  }
}

struct Targets {
  Tensor offsets, masks, cls_labels;
};

template <typename T>
void run(const Tensor& anchors, const Tensor& labels, const std::optional<Tensor>& cls_preds,
         MatchRules<T> rules, Variances<T> variances, Mining mining, int64_t semantics, Targets& out) {
  const int64_t num_images = labels.size(0), num_gts = labels.size(1), num_anchors = anchors.numel() / 4;
  out.offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
  out.masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
  if (num_images == 0 || num_anchors == 0) return;
  const AnchorBlocks<T> blocks = lay_out_anchors<T>(anchors);
  const Reader<T> read_labels(labels);
  const bool mines = mining.ratio != -1;
  const Reader<T> read_preds(mines ? *cls_preds : labels);
  const int64_t num_rows = mines ? cls_preds->size(1) : 0;
  const T eps = semantics == kSemanticsD2l ? static_cast<T>(kD2lEps) : T(0);
  T *offset_data = data<T>(out.offsets), *mask_data = data<T>(out.masks);
  int64_t* cls_data = data<int64_t>(out.cls_labels);
  // One image is enough work for a task: at 5,444 anchors it writes 218 kB.
  torch::stable::parallel_for(0, num_images, 1, [&](int64_t begin, int64_t end) {
    Matcher<T> matcher(blocks);
    Miner<T> miner(mining);
    GroundTruths<T> gts;
    std::vector<T> label_buffer, pred_buffer;
    std::vector<int32_t> matched;
    for (int64_t image = begin; image < end; ++image) {
      read_gts(read_labels.read(image * num_gts * 5, num_gts * 5, label_buffer), num_gts, semantics, gts);
      matcher.match(gts.boxes, rules, matched);
      int64_t* cls_labels = cls_data + image * num_anchors;
      write_targets(blocks, gts, matched, variances, eps, offset_data + 4 * image * num_anchors,
                    mask_data + 4 * image * num_anchors, cls_labels);
      if (mines) {
        const int64_t size = num_rows * num_anchors;
        miner.mine(read_preds.read(image * size, size, pred_buffer), num_rows, num_anchors, matched, matcher,
                   cls_labels);
      } else if (semantics == kSemanticsMxnet && gts.boxes.empty()) {
        std::fill(cls_labels, cls_labels + num_anchors, mining.ignore_label);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> multibox_target_cpu(
    const Tensor& anchors, const Tensor& labels, std::optional<Tensor> cls_preds, double iou_threshold,
    std::vector<double> variances, double negative_mining_ratio, double negative_mining_threshold,
    int64_t min_negatives, int64_t ignore_label, int64_t semantics) {
  check_multibox_target(anchors, labels, cls_preds, iou_threshold, variances, negative_mining_ratio,
                        negative_mining_threshold, min_negatives, semantics);
  const int64_t num_images = labels.size(0), num_anchors = anchors.numel() / 4;
  Targets out{anchors, anchors,
              torch::stable::new_empty(anchors, {num_images, num_anchors}, ScalarType::Long)};
  const Mining mining{negative_mining_ratio, negative_mining_threshold, min_negatives, ignore_label};
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        run<T>(anchors, labels, cls_preds, rules_of<T>(semantics, iou_threshold), to_variances<T>(variances),
               mining, semantics, out);
      },
      anchors, labels, cls_preds ? *cls_preds : labels);
  return {out.offsets, out.masks, out.cls_labels};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_target(Tensor anchors, Tensor labels, Tensor? cls_preds, float iou_threshold, "
      "float[] variances, float negative_mining_ratio, float negative_mining_threshold, int min_negatives, "
      "int ignore_label, int semantics) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_target", TORCH_BOX(&multibox_target_cpu));
}

}  // namespace
}  // namespace ssd_ops
