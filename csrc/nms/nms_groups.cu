#include "nms/greedy.cu.h"
#include "nms/nms.cuh"
#include "nms/nms_groups.cuh"
#include "nms/nms_groups.h"

namespace ssd_ops {
namespace {

template <typename Score, typename T, typename Source>
void launch_groups(Launcher& launcher, const Source& source, const NmsPlan<T>& plan,
                   int64_t* groups) {  // [segments, count]
  const int64_t total = plan.segments * plan.count;
  KeptLeaders<T, Source> leaders{source, plan.count, groups, nullptr, nullptr, nullptr, nullptr};
  leaders.boxes = launcher.scratch<T>(4 * total);
  leaders.indices = launcher.scratch<int32_t>(total);
  if (Source::kGrouped) leaders.classes = launcher.scratch<int64_t>(total);
  leaders.counts = launcher.scratch<int32_t>(plan.segments);
  constexpr int kMinusOne = 0xff;  // in every byte
  launcher.queue(
      [&] { return cudaMemsetAsync(groups, kMinusOne, static_cast<size_t>(8 * total), launcher.stream()); });
  launch_greedy_nms<Score>(launcher, source, leaders, plan);
  launcher.run(&nms_groups_kernel<T, Source>, ceil_div(total, kGroupThreads / kWarp), kGroupThreads, leaders,
               plan.segments, plan.limit);
}

Tensor nms_groups_cuda(const Tensor& boxes,         // [..., N, 4]
                       const Tensor& scores,        // [..., N]
                       std::optional<Tensor> idxs,  // [..., N] int64
                       double iou_threshold, int64_t metric) {
  check_nms_groups(boxes, scores, idxs, iou_threshold, metric);
  Launcher launcher("nms_groups", boxes);
  Tensor out = new_groups(boxes);
  if (out.numel() == 0) return out;
  const int64_t count = boxes.size(boxes.dim() - 2), segments = out.numel() / count;
  std::optional<Tensor> classes;
  if (idxs) classes = as_contiguous(*idxs);
  const int64_t* class_data = classes ? const_data<int64_t>(*classes) : nullptr;
  const DeviceInput box_input(boxes), score_input(scores);
  int64_t* groups = data<int64_t>(out);
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    const NmsPlan<T> plan{segments, count, count, count, overlap_limit<T>(iou_threshold, metric)};
    launcher.with_scratch([&] {
      if (class_data)
        launch_groups<S>(launcher, BoxList<T, S, true>{box_input, score_input, class_data, count}, plan,
                         groups);
      else
        launch_groups<S>(launcher, BoxList<T, S, false>{box_input, score_input, nullptr, count}, plan,
                         groups);
    });
  };
  dispatch_boxes_and_scores(run, boxes, scores);
  return out;
}

SSD_CUDA_IMPL(m) {
  m.impl("nms_groups", TORCH_BOX(&nms_groups_cuda));
}

}  // namespace
}  // namespace ssd_ops
