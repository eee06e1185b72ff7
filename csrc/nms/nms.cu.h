// The launches that nms, batched_nms and nms_padded share.
#pragma once

#include "nms/greedy.cu.h"
#include "nms/nms.cuh"
#include "nms/nms.h"

namespace ssd_ops {

// The padded form, of `segments` images with `count` boxes each.
inline void launch_nms(Launcher& launcher,
                       const Tensor& boxes,    // [segments, count, 4]
                       const Tensor& scores,   // [segments, count]
                       const int64_t* groups,  // [segments, count], or null
                       double iou_threshold, int64_t metric, int64_t segments, int64_t count,
                       int64_t* indices,   // [segments, count], in memory of this GPU
                       int64_t* counts) {  // [segments], the same
  const DeviceInput box_input(boxes), score_input(scores);
  const PaddedIndices writer{count, indices, counts};
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    const NmsPlan<T> plan{segments, count, count, count, overlap_limit<T>(iou_threshold, metric)};
    launcher.with_scratch([&] {
      if (groups)
        launch_greedy_nms<S>(launcher, BoxList<T, S, true>{box_input, score_input, groups, count}, writer,
                             plan);
      else
        launch_greedy_nms<S>(launcher, BoxList<T, S, false>{box_input, score_input, groups, count}, writer,
                             plan);
    });
  };
  dispatch_boxes_and_scores(run, boxes, scores);
}

// The indices [K] of the boxes kept.
inline Tensor nms_indices(Launcher& launcher,
                          const Tensor& boxes,    // [N, 4]
                          const Tensor& scores,   // [N]
                          const int64_t* groups,  // [N], or null
                          double iou_threshold, int64_t metric) {
  const int64_t count = boxes.size(0);
  Tensor indices = new_integers(boxes, {count + 1});  // the number kept lies behind the indices
  int64_t* index_data = data<int64_t>(indices);
  launch_nms(launcher, boxes, scores, groups, iou_threshold, metric, 1, count, index_data,
             index_data + count);
  // The one wait: the size of the result has to be known here.
  int64_t kept = 0;
  launcher.check(
      cudaMemcpyAsync(&kept, index_data + count, sizeof(kept), cudaMemcpyDeviceToHost, launcher.stream()));
  launcher.check(cudaStreamSynchronize(launcher.stream()));
  return torch::stable::narrow(indices, 0, 0, kept);
}

}  // namespace ssd_ops
