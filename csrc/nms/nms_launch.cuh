// What nms and nms_padded do: the padded form.
#pragma once

#include "nms/greedy_launch.cuh"
#include "nms/nms.cuh"
#include "nms/nms.h"

namespace ssd_ops {

// indices [segments, count] and counts [segments], in memory of this GPU.
inline void launch_nms_padded(Launcher& launcher, const char* op, const Tensor& boxes, const Tensor& scores,
                              double iou_threshold, int64_t segments, int64_t count, int64_t* indices,
                              int64_t* counts) {
  const DeviceInput box_input(boxes), score_input(scores);
  const PaddedIndices writer{count, indices, counts};
  const auto run = [&](auto box_zero, auto score_zero) {
    using T = decltype(box_zero);
    using S = decltype(score_zero);
    const BoxList<T, S> source{box_input, score_input, count};
    const NmsPlan<T> plan{segments, count, count, count, round_down<T>(iou_threshold)};
    launch_greedy_nms<S>(launcher, op, source, writer, plan);
  };
  dispatch_real([&](auto box) { dispatch_real([&](auto score) { run(box, score); }, scores); }, boxes);
}

}  // namespace ssd_ops
