// multiclass_nms and detect on the GPU: scores by class, the best of each class, NMS of what is left.
//
// Candidates lie class by class, and in a class by box, so that their place is the order of equal scores.
#pragma once

#include "common/block_select.cuh"
#include "detection/class_scores.cuh"
#include "detection/detections.h"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kScoreThreads = 256;

// The best score of each box, one thread a box: best_scores_kernel without bins, for rows of any length.
template <typename T, typename Scores>
__global__ void __launch_bounds__(kScoreThreads)
    best_of_rows_kernel(Scores scores, int64_t all_rows, BestScores<T> out) {
  const int64_t row = global_index();
  if (row >= all_rows) return;
  const Softmax<T> softmax = scores.softmax(row);
  T best = -std::numeric_limits<T>::infinity();
  for (int64_t c = 0; c < scores.num_classes(); ++c) best = max_of(scores.score(row, c, softmax), best);
  out.best[row] = best;
  if constexpr (Scores::kSoftmax) out.softmax[row] = softmax;
}

// The scores by class, NaN where they are not candidates.
template <typename T, typename Scores>
__global__ void __launch_bounds__(kScoreThreads) scores_by_class_kernel(Scores scores,  // [B, N, C]
                                                                        int64_t images, T threshold,
                                                                        T* by_class) {  // [B, C, N]
  const int64_t at = global_index(), count = scores.num_boxes, classes = scores.num_classes();
  if (at >= images * count) return;
  const int64_t image = at / count, box = at % count;
  const auto softmax = scores.softmax(at);
  const ClassRange range = scores.classes(at);
  const Candidate<T> end = scores.end_of(at, Candidate<T>::end());
  for (int64_t c = 0; c < classes; ++c) {
    const T score = scores.score(at, c, softmax);
    const Candidate<T> found{descending_key(score), static_cast<uint32_t>(c * count + box)};
    const bool is_one = score > threshold && range.begin <= c && c < range.end && found < end;
    by_class[(image * classes + c) * count + box] = is_one ? score : std::numeric_limits<T>::quiet_NaN();
  }
}

// Of each class of each image the `wanted` highest scores, and which boxes they are of; then NaN.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads) class_topk_kernel(const T* by_class,  // [B * C, count]
                                                                    int64_t count, int64_t wanted,
                                                                    T* scores,         // [B * C, wanted]
                                                                    int32_t* boxes) {  // [B * C, wanted]
  using Key = typename FloatTraits<T>::Bits;
  __shared__ SelectSpace space;
  __shared__ int num_candidates;
  const T* mine = by_class + blockIdx.x * count;
  scores += blockIdx.x * wanted;
  boxes += blockIdx.x * wanted;
  if (threadIdx.x == 0) num_candidates = 0;
  __syncthreads();
  for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
    const int64_t i = begin + threadIdx.x;
    const unsigned lanes = __ballot_sync(kAllLanes, i < count && mine[i] == mine[i]);
    if (lane_index() == 0) atomicAdd(&num_candidates, __popc(lanes));
  }
  __syncthreads();
  const int64_t found = min_of<int64_t>(num_candidates, wanted);
  block_select<Key>(
      count, num_candidates, found,
      [&](int64_t i, Key& key) {
        const T score = mine[i];
        key = descending_key(score);
        return score == score;
      },
      [&](int64_t i, int64_t place) {
        scores[place] = mine[i];
        boxes[place] = static_cast<int32_t>(i);
      },
      space);
  for (int64_t place = found + threadIdx.x; place < wanted; place += kSelectThreads) {
    scores[place] = std::numeric_limits<T>::quiet_NaN();
    boxes[place] = 0;
  }
}

// The candidates as a source of greedy.cuh. boxes(image, i) is box i of an image.
template <typename T, typename Boxes, bool kByClass>
struct ClassCandidates {
  static constexpr bool kGrouped = kByClass;
  const T* scores;           // [B, C, per_class]
  const int32_t* box_of;     // the same, or null where all boxes are candidates
  int64_t per_class, count;  // count: of an image
  Boxes boxes;

  __device__ T score(int64_t image, int64_t i) const { return scores[image * count + i]; }
  __device__ int64_t group(int64_t, int64_t i) const { return i / per_class; }
  __device__ int64_t index(int64_t image, int64_t i) const {
    return box_of ? box_of[image * count + i] : i % per_class;
  }
  __device__ Box<T> box(int64_t image, int64_t i) const { return boxes(image, index(image, i)); }
};

// Writes what is kept; then 0, 0, -1, -1.
template <typename T, typename Candidates>
struct DetectionWriter {
  static constexpr bool kWritesOthers = false, kWritesRanks = false;
  Candidates candidates;
  int64_t max_detections;
  DetectionRows<T> rows;  // of the first image; those of the others follow

  __device__ void write(int64_t at, Box<T> box, T score, int64_t label, int64_t index) const {
    store_row(rows.boxes, at, box);
    rows.scores[at] = score;
    rows.labels[at] = label;
    rows.indices[at] = index;
  }
  __device__ void kept(int64_t image, int64_t place, int64_t i) const {
    write(image * max_detections + place, candidates.box(image, i), candidates.score(image, i),
          i / candidates.per_class, candidates.index(image, i));
  }
  __device__ void done(int64_t image, int64_t num_kept, int64_t part, int64_t parts) const {
    const int64_t thread = part * blockDim.x + threadIdx.x;
    for (int64_t place = num_kept + thread; place < max_detections; place += parts * blockDim.x)
      write(image * max_detections + place, {0, 0, 0, 0}, T(0), -1, -1);
    if (thread == 0) rows.count[image] = num_kept;
  }
};

}  // namespace ssd_ops
