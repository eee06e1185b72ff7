#include "target/matching.cu.h"
#include "target/multibox_target.cuh"
#include "target/multibox_target.h"

namespace ssd_ops {
namespace {

// Two launches after the matching: the keys of all candidates, then a block for each image.
template <typename T>
void launch_mining(Launcher& launcher, const TargetProblem<T>& problem, const MiningRules& rules,
                   const Tensor& cls_preds) {  // [B, C+1, A]
  using Key = typename FloatTraits<T>::Bits;
  const int64_t num_images = cls_preds.size(0), num_anchors = problem.num_anchors;
  const DeviceInput preds(cls_preds);
  launcher.run(&background_keys<T>, ceil_div(num_images * num_anchors, kBackgroundThreads),
               kBackgroundThreads, preds, num_images, cls_preds.size(1), num_anchors, problem.mining_keys);
  const int64_t with_keys = mining_shared_bytes<Key>(num_anchors);
  const bool keep = with_keys <= launcher.shared_limit();
  launcher.run_with_shared(keep ? &mine_negatives<T, true> : &mine_negatives<T, false>, num_images,
                           kSelectThreads, keep ? with_keys : mining_shared_bytes<Key>(0), rules,
                           static_cast<unsigned>(num_anchors), static_cast<const Key*>(problem.mining_keys),
                           problem.cls_labels);
}

Targets multibox_target_cuda(const Tensor& anchors,            // [A, 4] or [1, A, 4]
                             const Tensor& labels,             // [B, G, 5]
                             std::optional<Tensor> cls_preds,  // [B, C+1, A]
                             double iou_threshold, std::vector<double> variances,
                             double negative_mining_ratio, double negative_mining_threshold,
                             int64_t min_negatives, int64_t ignore_label, int64_t semantics, int64_t coding,
                             std::optional<Tensor> ignore_boxes,  // [B, K, 4]
                             double ignore_threshold) {
  check_multibox_target(anchors, labels, cls_preds, iou_threshold, variances, negative_mining_ratio,
                        negative_mining_threshold, min_negatives, semantics, coding, ignore_boxes,
                        ignore_threshold);
  const int64_t num_images = labels.size(0), num_anchors = anchors.numel() / 4;
  const Semantics kind = static_cast<Semantics>(semantics);
  const MiningRules mining{negative_mining_ratio, negative_mining_threshold, min_negatives, ignore_label};
  Launcher launcher("multibox_target", anchors);
  return dispatch_real(
      [&](auto zero) -> Targets {
        using T = decltype(zero);
        Tensor offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
        Tensor masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
        Tensor cls_labels = new_integers(anchors, {num_images, num_anchors});
        if (cls_labels.numel() == 0) return {offsets, masks, cls_labels};
        const DeviceInput anchor_input(anchors), label_input(labels);
        TargetProblem<T> problem = {};
        problem.anchors = anchor_input;
        problem.labels = label_input;
        problem.num_anchors = num_anchors;
        problem.num_gts = labels.size(1);
        problem.num_rows = num_images * labels.size(1);
        problem.rules = match_rules<T>(kind, iou_threshold);
        problem.target = target_rules<T>(kind, to_variances<T>(variances), coding, ignore_label);
        problem.offsets = data<T>(offsets);
        problem.masks = data<T>(masks);
        problem.cls_labels = data<int64_t>(cls_labels);
        problem.mining_threshold = static_cast<T>(mining.threshold);
        problem.ignore_label = ignore_label;
        launcher.with_scratch([&] {
          if (mining.is_on())
            problem.mining_keys = launcher.scratch<typename FloatTraits<T>::Bits>(cls_labels.numel());
          launch_matching(launcher, problem, num_images, problem.num_gts);
          launch_ignoring(launcher, problem, num_images, ignore_boxes, ignore_threshold);
          if (mining.is_on()) launch_mining(launcher, problem, mining, *cls_preds);
        });
        return {offsets, masks, cls_labels};
      },
      anchors, labels, cls_preds, ignore_boxes);
}

SSD_CUDA_IMPL(m) {
  m.impl("multibox_target", TORCH_BOX(&multibox_target_cuda));
}

}  // namespace
}  // namespace ssd_ops
