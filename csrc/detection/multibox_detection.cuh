// multibox_detection on the GPU: a streaming kernel for the best class and the box of each anchor, then NMS
// whose writer makes the rows.
#pragma once

#include "common/device.cuh"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kDetectionThreads = 256;

// What the first kernel leaves for the second.
template <typename T>
struct Candidates {
  static constexpr bool kGrouped = false;
  int64_t num_anchors;
  T *scores, *boxes;  // [B, A], [B, A, 4]
  int32_t* classes;   // [B, A]

  __device__ T score(int64_t image, int64_t i) const { return scores[image * num_anchors + i]; }
  __device__ Box<T> box(int64_t image, int64_t i) const { return load_row(boxes, image * num_anchors + i); }
};

template <typename T>
__global__ void __launch_bounds__(kDetectionThreads)
    best_class_kernel(Input cls_probs, Input offset_preds, Input anchors, int64_t num_images,
                      int64_t num_classes, Variances<T> variances, Candidates<T> out) {
  const int64_t at = global_index(), num_anchors = out.num_anchors;
  if (at >= num_images * num_anchors) return;
  const int64_t image = at / num_anchors, i = at % num_anchors;
  T best = 0;
  int32_t best_class = 0;
  for (int64_t c = 0; c < num_classes; ++c) {
    T prob = load<T>(cls_probs, (image * (num_classes + 1) + 1 + c) * num_anchors + i);
    prob = prob == prob ? prob : T(0);
    if (c == 0 || prob > best) {
      best = prob;
      best_class = static_cast<int32_t>(c);
    }
  }
  const Box<T> o = load_row<T>(offset_preds, at);
  out.scores[at] = best;
  out.classes[at] = best_class;
  store_row(out.boxes, at, decode({o.x1, o.y1, o.x2, o.y2}, load_row<T>(anchors, i), variances));
}

// Rows (class, score, box): the kept ones by score, then the others by anchor with class -1.
template <typename T>
struct D2lRows {
  Candidates<T> candidates;
  T pos_threshold;
  T* rows;  // [B, A, 6]

  __device__ void write(int64_t image, int64_t place, int64_t i, T label) const {
    const T score = candidates.score(image, i);
    const bool background = score < pos_threshold;
    const Box<T> box = candidates.box(image, i);
    T* row = rows + 6 * (image * candidates.num_anchors + place);
    row[0] = background ? T(-1) : label;
    row[1] = background ? T(1) - score : score;
    row[2] = box.x1;
    row[3] = box.y1;
    row[4] = box.x2;
    row[5] = box.y2;
  }
  __device__ void kept(int64_t image, int64_t place, int64_t i) const {
    write(image, place, i, static_cast<T>(candidates.classes[image * candidates.num_anchors + i]));
  }
  __device__ void other(int64_t image, int64_t place, int64_t i) const { write(image, place, i, T(-1)); }
  __device__ void done(int64_t, int64_t) const {}
};

}  // namespace ssd_ops
