// The rules by which multiclass_nms and detect select, and where their detections go. No torch header.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "nms/prune.h"

namespace ssd_ops {

// Which pairs of a box and a class stay candidates, before the topk of each class.
struct CandidateRules {
  bool best_class_only;
  std::vector<int64_t> level_counts;  // boxes of each level; means nothing with a topk_per_level of -1
  int64_t topk_per_level;             // -1: all
};

// What each does: detection/multiclass_nms.h.
template <typename T>
struct SelectionRules {
  T score_threshold;
  OverlapLimit<T> limit;  // of NMS, so that overlaps in T compare with it as with the threshold given
  int64_t topk;           // -1: all
  int64_t max_detections;
  bool class_agnostic;
  CandidateRules candidates;

  SelectionRules(double score_threshold, double iou_threshold, int64_t topk, int64_t max_detections,
                 bool class_agnostic, int64_t metric, CandidateRules candidates)
      : score_threshold(static_cast<T>(score_threshold)),
        limit(overlap_limit<T>(iou_threshold, metric)),
        topk(topk),
        max_detections(max_detections),
        class_agnostic(class_agnostic),
        candidates(std::move(candidates)) {}
};

// The detections of one image: K = max_detections of them.
template <typename T>
struct DetectionRows {
  T *boxes, *scores;          // [K, 4], [K]
  int64_t *labels, *indices;  // [K], [K]
  int64_t* count;             // [1]
};

}  // namespace ssd_ops
