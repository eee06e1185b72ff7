// The launches that multiclass_nms and detect share.
#pragma once

#include "detection/multiclass_nms.h"
#include "detection/selection.cuh"
#include "nms/greedy.cu.h"

namespace ssd_ops {

// Scores and Boxes: what selection.cuh reads the scores and the boxes from.
template <typename T, typename Scores, typename Boxes>
Detections launch_selection(Launcher& launcher, const Tensor& like, const Scores& scores, const Boxes& boxes,
                            int64_t num_images, int64_t num_boxes, int64_t num_classes,
                            const SelectionRules<T>& rules) {
  const DetectionTensors<T> out(like, num_images, rules.max_detections);
  const int64_t rows = num_images * num_classes, total = rows * num_boxes;
  if (num_boxes > std::numeric_limits<int32_t>::max())
    launcher.fail("boxes must be fewer than 2^31 on a GPU, got ", num_boxes);
  T* by_class = launcher.scratch<T>(total);
  if (total > 0)
    launcher.run(&scores_by_class_kernel<T, Scores>, ceil_div(num_images * num_boxes, kScoreThreads),
                 kScoreThreads, scores, num_images, num_boxes, num_classes, rules.score_threshold, by_class);
  const T* candidate_scores = by_class;
  const int32_t* box_of = nullptr;
  int64_t per_class = num_boxes;
  if (rules.topk != -1 && rules.topk < num_boxes) {
    per_class = rules.topk;
    T* best_scores = launcher.scratch<T>(rows * per_class);
    int32_t* best_boxes = launcher.scratch<int32_t>(rows * per_class);
    if (total > 0)
      launcher.run(&class_topk_kernel<T>, rows, kSelectThreads, by_class, num_boxes, per_class, best_scores,
                   best_boxes);
    candidate_scores = best_scores;
    box_of = best_boxes;
  }
  const int64_t count = num_classes * per_class;
  const NmsPlan<T> plan{num_images, count, count, rules.max_detections, rules.iou_threshold};
  const auto run = [&](auto within_class) {
    using Candidates = ClassCandidates<T, Boxes, decltype(within_class)::value>;
    const Candidates candidates{candidate_scores, box_of, per_class, count, boxes};
    const DetectionWriter<T, Candidates> writer{candidates, rules.max_detections, out.rows(0)};
    launch_greedy_nms<T>(launcher, candidates, writer, plan);
  };
  rules.class_agnostic ? run(std::false_type()) : run(std::true_type());
  return out.tensors();
}

}  // namespace ssd_ops
