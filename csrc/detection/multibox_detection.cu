#include "detection/multibox_detection.cuh"
#include "detection/multibox_detection.h"
#include "nms/greedy.cu.h"

namespace ssd_ops {
namespace {

template <typename T, typename Writer>
void launch_detection_nms(Launcher& launcher, const BestClasses<T>& best, const Writer& writer,
                          const NmsPlan<T>& plan, bool class_agnostic) {
  if (class_agnostic)
    launch_greedy_nms<T>(launcher, DetectionSource<T, false>{best}, writer, plan);
  else
    launch_greedy_nms<T>(launcher, DetectionSource<T, true>{best}, writer, plan);
}

Tensor multibox_detection_cuda(const Tensor& cls_probs,     // [B, C+1, A]
                               const Tensor& offset_preds,  // [B, 4A]
                               const Tensor& anchors,       // [A, 4] or [1, A, 4]
                               double nms_threshold, double pos_threshold, std::vector<double> variances,
                               bool clip, bool class_agnostic, int64_t topk, int64_t semantics) {
  check_multibox_detection(cls_probs, offset_preds, anchors, nms_threshold, pos_threshold, variances, topk,
                           semantics);
  const int64_t num_images = cls_probs.size(0), num_anchors = cls_probs.size(2),
                total = num_images * num_anchors;
  const bool mxnet = static_cast<Semantics>(semantics) == Semantics::kMxnet;
  const int64_t max_ranked = topk == -1 ? num_anchors : topk;
  Launcher launcher("multibox_detection", cls_probs);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor out = new_real<T>(cls_probs, {num_images, num_anchors, 6});
        if (total == 0) return out;
        const T threshold = static_cast<T>(nms_threshold), positive = static_cast<T>(pos_threshold);
        const DeviceInput probs(cls_probs), offsets(offset_preds), anchor_input(anchors);
        launcher.with_scratch([&] {
          BestClasses<T> best = {};
          best.num_anchors = num_anchors;
          best.scores = launcher.scratch<T>(total);
          best.boxes = launcher.scratch<T>(4 * total);
          best.classes = launcher.scratch<int32_t>(total);
          launcher.run(&best_class_kernel<T>, ceil_div(total, kDetectionThreads), kDetectionThreads, probs,
                       offsets, anchor_input, num_images, cls_probs.size(1) - 1,
                       to_decoding<T>(variances, to_limits(clip)), mxnet, positive, best);
          NmsPlan<T> plan{num_images, num_anchors, max_ranked, num_anchors, {threshold, Metric::kIou}};
          T* rows = data<T>(out);
          if (!mxnet) {
            launch_detection_nms(launcher, best, D2lRows<T>{best, positive, rows}, plan, class_agnostic);
            return;
          }
          Marks marks = {};
          const bool with_nms = threshold > T(0);
          if (with_nms) {
            marks = {num_anchors, launcher.scratch<int32_t>(total), launcher.scratch<uint8_t>(total)};
            // At this threshold or more: more than the number before it.
            plan.limit.threshold = std::nextafter(threshold, T(-1));
            launch_detection_nms(launcher, best, marks, plan, class_agnostic);
          }
          launcher.run(&mxnet_rows_kernel<T>, num_images, kRowThreads, best, marks, with_nms, max_ranked,
                       rows);
        });
        return out;
      },
      cls_probs, offset_preds, anchors);
}

SSD_CUDA_IMPL(m) {
  m.impl("multibox_detection", TORCH_BOX(&multibox_detection_cuda));
}

}  // namespace
}  // namespace ssd_ops
