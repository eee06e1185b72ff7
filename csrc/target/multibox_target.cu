#include <tuple>

#include "target/matching_launch.cuh"
#include "target/multibox_target.cuh"
#include "target/multibox_target.h"

namespace ssd_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> multibox_target_cuda(
    const Tensor& anchors, const Tensor& labels, std::optional<Tensor> cls_preds, double iou_threshold,
    std::vector<double> variances, double negative_mining_ratio, double negative_mining_threshold,
    int64_t min_negatives, int64_t ignore_label, int64_t semantics) {
  check_multibox_target(anchors, labels, cls_preds, iou_threshold, variances, negative_mining_ratio,
                        negative_mining_threshold, min_negatives, semantics);
  const int64_t num_images = labels.size(0), num_anchors = anchors.numel() / 4,
                total = num_images * num_anchors;
  const bool mines = negative_mining_ratio != -1;
  Launcher launcher("multibox_target", anchors);
  Tensor offsets = anchors, masks = anchors;
  Tensor cls_labels = torch::stable::new_empty(anchors, {num_images, num_anchors}, ScalarType::Long);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        using Key = typename FloatTraits<T>::Bits;
        offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
        masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
        if (total == 0) return;
        const DeviceInput anchor_input(anchors), label_input(labels);
        TargetProblem<T> problem = {};
        problem.anchors = anchor_input;
        problem.labels = label_input;
        problem.num_anchors = num_anchors;
        problem.num_gts = labels.size(1);
        problem.num_rows = num_images * labels.size(1);
        problem.rules = rules_of<T>(semantics, iou_threshold);
        problem.variances = to_variances<T>(variances);
        problem.eps = semantics == kSemanticsD2l ? static_cast<T>(kD2lEps) : T(0);
        problem.semantics = semantics;
        problem.label_without_gts = semantics == kSemanticsMxnet ? ignore_label : 0;
        problem.offsets = data<T>(offsets);
        problem.masks = data<T>(masks);
        problem.best_ious = mines ? launcher.scratch<T>(total) : nullptr;
        problem.row_values = data<int64_t>(cls_labels);
        launch_matching(launcher, "multibox_target", problem, num_images);
        if (!mines) return;
        const DeviceInput preds(*cls_preds);
        Key* keys = launcher.scratch<Key>(total);
        launcher.run(&background_keys<T>, ceil_div(total, kBackgroundThreads), kBackgroundThreads, preds,
                     num_images, cls_preds->size(1), num_anchors, keys);
        const MiningRules rules{negative_mining_ratio, negative_mining_threshold, min_negatives,
                                ignore_label};
        launcher.run(&mine_negatives<T>, num_images, kSelectThreads, rules, num_anchors,
                     static_cast<const T*>(problem.best_ious), static_cast<const Key*>(keys),
                     static_cast<const T*>(problem.masks), problem.row_values);
      },
      anchors, labels, cls_preds ? *cls_preds : labels);
  return {offsets, masks, cls_labels};
}

SSD_CUDA_IMPL(m) {
  m.impl("multibox_target", TORCH_BOX(&multibox_target_cuda));
}

}  // namespace
}  // namespace ssd_ops
