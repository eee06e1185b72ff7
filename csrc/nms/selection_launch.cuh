// The launches that multiclass_nms and detect share.
#pragma once

#include <tuple>

#include "nms/greedy_launch.cuh"
#include "nms/selection.cuh"

namespace ssd_ops {

template <typename T>
struct SelectionSizes {
  int64_t images, boxes, classes;
  T score_threshold, iou_threshold;
  int64_t topk, max_detections;  // topk -1: all
  bool class_agnostic;
};

// -> boxes, scores, labels, indices, counts
template <typename T, typename Scores, typename Boxes>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> launch_selection(Launcher& launcher, const char* op,
                                                                    const Tensor& like, const Scores& scores,
                                                                    const Boxes& boxes,
                                                                    const SelectionSizes<T>& s) {
  const int64_t size = s.max_detections;
  // In vectors: nvcc mistakes a list in braces here for a block.
  const std::vector<int64_t> per_image{s.images}, per_row{s.images, size}, per_box{s.images, size, 4};
  Tensor out_boxes = torch::stable::new_empty(like, per_box, kScalarType<T>);
  Tensor out_scores = torch::stable::new_empty(like, per_row, kScalarType<T>);
  Tensor labels = torch::stable::new_empty(like, per_row, ScalarType::Long);
  Tensor indices = torch::stable::new_empty(like, per_row, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(like, per_image, ScalarType::Long);
  const int64_t total = s.images * s.classes * s.boxes;
  if (s.boxes > std::numeric_limits<int32_t>::max())
    fail(op, "boxes must be fewer than 2^31 on a GPU, got ", s.boxes);
  T* by_class = launcher.scratch<T>(total);
  if (total > 0)
    launcher.run(&scores_by_class_kernel<T, Scores>, ceil_div(s.images * s.boxes, kScoreThreads),
                 kScoreThreads, scores, s.images, s.boxes, s.classes, s.score_threshold, by_class);
  const T* candidate_scores = by_class;
  const int32_t* box_of = nullptr;
  int64_t per_class = s.boxes;
  if (s.topk != -1 && s.topk < s.boxes) {
    per_class = s.topk;
    T* best_scores = launcher.scratch<T>(s.images * s.classes * per_class);
    int32_t* best_boxes = launcher.scratch<int32_t>(s.images * s.classes * per_class);
    if (total > 0)
      launcher.run(&class_topk_kernel<T>, s.images * s.classes, kSelectThreads, by_class, s.boxes, per_class,
                   best_scores, best_boxes);
    candidate_scores = best_scores;
    box_of = best_boxes;
  }
  const int64_t count = s.classes * per_class;
  const auto run = [&](auto by_class_too) {
    using Candidates = ClassCandidates<T, Boxes, decltype(by_class_too)::value>;
    const Candidates candidates{candidate_scores, box_of, per_class, count, boxes};
    const DetectionWriter<T, Candidates> writer{candidates,
                                                size,
                                                data<T>(out_boxes),
                                                data<T>(out_scores),
                                                data<int64_t>(labels),
                                                data<int64_t>(indices),
                                                data<int64_t>(counts)};
    const NmsPlan<T> plan{s.images, count, count, size, s.iou_threshold};
    launch_greedy_nms<T>(launcher, op, candidates, writer, plan);
  };
  s.class_agnostic ? run(std::false_type()) : run(std::true_type());
  return {out_boxes, out_scores, labels, indices, counts};
}

}  // namespace ssd_ops
