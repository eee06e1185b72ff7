// What nms, batched_nms and nms_padded do: the padded form.
#pragma once

#include "nms/greedy_launch.cuh"
#include "nms/nms.cuh"
#include "nms/nms.h"

namespace ssd_ops {

// indices [segments, count] and counts [segments], in memory of this GPU. `groups` may be null.
inline void launch_nms_padded(Launcher& launcher, const char* op, const Tensor& boxes, const Tensor& scores,
                              const int64_t* groups, double iou_threshold, int64_t segments, int64_t count,
                              int64_t* indices, int64_t* counts) {
  const DeviceInput box_input(boxes), score_input(scores);
  const PaddedIndices writer{count, indices, counts};
  const auto run = [&](auto box_zero, auto score_zero) {
    using T = decltype(box_zero);
    using S = decltype(score_zero);
    const NmsPlan<T> plan{segments, count, count, count, round_down<T>(iou_threshold)};
    if (groups)
      launch_greedy_nms<S>(launcher, op, BoxList<T, S, true>{box_input, score_input, groups, count}, writer,
                           plan);
    else
      launch_greedy_nms<S>(launcher, op, BoxList<T, S, false>{box_input, score_input, groups, count}, writer,
                           plan);
  };
  dispatch_real([&](auto box) { dispatch_real([&](auto score) { run(box, score); }, scores); }, boxes);
}

// The indices kept alone.
inline Tensor nms_indices(const char* op, const Tensor& boxes, const Tensor& scores, const int64_t* groups,
                          double iou_threshold) {
  const int64_t count = boxes.size(0);
  Launcher launcher(op, boxes);
  // The number kept lies behind the indices.
  Tensor indices = torch::stable::new_empty(boxes, {count + 1}, ScalarType::Long);
  int64_t* index_data = data<int64_t>(indices);
  launch_nms_padded(launcher, op, boxes, scores, groups, iou_threshold, 1, count, index_data,
                    index_data + count);
  // The one wait: the size of the result has to be known here.
  int64_t kept = 0;
  launcher.check(
      cudaMemcpyAsync(&kept, index_data + count, sizeof(kept), cudaMemcpyDeviceToHost, launcher.stream()));
  launcher.check(cudaStreamSynchronize(launcher.stream()));
  return torch::stable::narrow(indices, 0, 0, kept);
}

}  // namespace ssd_ops
