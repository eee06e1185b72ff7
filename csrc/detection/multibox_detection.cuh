// multibox_detection on the GPU: a streaming kernel for the best class and the box of each anchor, then NMS.
// For d2l its writer makes the rows; MXNet's order of rows needs a kernel of its own.
#pragma once

#include "common/device.cuh"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kDetectionThreads = 256;
constexpr int kRowThreads = 1024;

// The best class of each anchor, from the first kernel. The score is NaN where the anchor does not take part.
template <typename T>
struct BestClasses {
  int64_t num_anchors;
  T *scores, *boxes;  // [B, A], [B, A, 4]
  int32_t* classes;   // [B, A]

  __device__ T score(int64_t image, int64_t i) const { return scores[image * num_anchors + i]; }
  __device__ Box<T> box(int64_t image, int64_t i) const { return load_row(boxes, image * num_anchors + i); }
  __device__ int64_t group(int64_t image, int64_t i) const { return classes[image * num_anchors + i]; }

  __device__ void write(T* rows, int64_t image, int64_t place, int64_t i, bool labelled, T shown) const {
    const Box<T> b = box(image, i);
    T* row = rows + 6 * (image * num_anchors + place);
    row[0] = labelled ? static_cast<T>(group(image, i)) : T(-1);
    row[1] = shown;
    row[2] = b.x1;
    row[3] = b.y1;
    row[4] = b.x2;
    row[5] = b.y2;
  }
};

template <typename T, bool kByClass>
struct DetectionSource : BestClasses<T> {
  static constexpr bool kGrouped = kByClass;
};

// d2l: a NaN probability counts as 0. mxnet: as -1, and an anchor takes part only with a score that is above
// -1 and not below pos_threshold.
template <typename T>
__global__ void __launch_bounds__(kDetectionThreads)
    best_class_kernel(Input cls_probs,     // [B, C+1, A]
                      Input offset_preds,  // [B, A, 4]
                      Input anchors,       // [A, 4]
                      int64_t num_images, int64_t num_classes, Decoding<T> decoding, bool mxnet,
                      T pos_threshold, BestClasses<T> out) {
  const int64_t at = global_index(), num_anchors = out.num_anchors;
  if (at >= num_images * num_anchors) return;
  const int64_t image = at / num_anchors, i = at % num_anchors;
  const T if_nan = mxnet ? T(-1) : T(0);
  T best = 0;
  int32_t best_class = 0;
  for (int64_t c = 0; c < num_classes; ++c) {
    T prob = load<T>(cls_probs, (image * (num_classes + 1) + 1 + c) * num_anchors + i);
    prob = prob == prob ? prob : if_nan;
    if (c == 0 || prob > best) {
      best = prob;
      best_class = static_cast<int32_t>(c);
    }
  }
  const bool left_out = mxnet && !(best > T(-1) && !(best < pos_threshold));
  const Box<T> o = load_row<T>(offset_preds, at);
  const Box<T> box = decode({o.x1, o.y1, o.x2, o.y2}, load_row<T>(anchors, i), decoding);
  out.scores[at] = left_out ? std::numeric_limits<T>::quiet_NaN() : best;
  out.classes[at] = best_class;
  store_row(out.boxes, at, box);
}

// Rows (class, score, box): the kept ones by score, then the others by anchor with class -1.
template <typename T>
struct D2lRows {
  static constexpr bool kWritesOthers = true, kWritesRanks = false;
  BestClasses<T> best;
  T pos_threshold;
  T* rows;  // [B, A, 6]

  __device__ void write(int64_t image, int64_t place, int64_t i, bool is_kept) const {
    const T score = best.score(image, i);
    const bool background = score < pos_threshold;
    best.write(rows, image, place, i, is_kept && !background, background ? T(1) - score : score);
  }
  __device__ void kept(int64_t image, int64_t place, int64_t i) const { write(image, place, i, true); }
  __device__ void other(int64_t image, int64_t place, int64_t i) const { write(image, place, i, false); }
  __device__ void done(int64_t, int64_t, int64_t, int64_t) const {}
};

// What MXNet's rows need to know of each anchor.
struct Marks {
  static constexpr bool kWritesOthers = true, kWritesRanks = true;
  int64_t num_anchors;
  int32_t* ranks;    // [B, A]
  uint8_t* is_kept;  // [B, A]

  __device__ void kept(int64_t image, int64_t, int64_t i) const { is_kept[image * num_anchors + i] = 1; }
  __device__ void other(int64_t image, int64_t, int64_t i) const { is_kept[image * num_anchors + i] = 0; }
  __device__ void ranked(int64_t image, int64_t rank, int64_t i) const {
    ranks[image * num_anchors + i] = static_cast<int32_t>(rank);
  }
  __device__ void done(int64_t, int64_t, int64_t, int64_t) const {}
};

// The first topk survivors by score, with class -1 where NMS drops them; then the survivors past number topk
// by anchor, with class -1; then rows of -1. Without NMS all survivors by anchor. One block an image.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    mxnet_rows_kernel(BestClasses<T> best, Marks marks, bool with_nms, int64_t topk,
                      T* rows) {  // [B, A, 6]
  __shared__ int sums[kRowThreads / kWarp];
  const int64_t image = blockIdx.x, count = best.num_anchors, first = image * count;
  const auto survives = [&](int64_t i) { return i < count && best.score(image, i) == best.score(image, i); };
  int64_t survivors = 0;
  int total;
  for (int64_t begin = 0; begin < count; begin += kRowThreads) {
    block_exclusive_sum(survives(begin + threadIdx.x), sums, total);
    survivors += total;
  }
  const int64_t in_nms = with_nms ? min_of(survivors, topk) : 0;
  int64_t seen = 0;
  for (int64_t begin = 0; begin < count; begin += kRowThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool alive = survives(i);
    const int64_t number = seen + block_exclusive_sum(alive, sums, total);
    seen += total;
    if (!alive) continue;
    if (with_nms && marks.ranks[first + i] < in_nms)
      best.write(rows, image, marks.ranks[first + i], i, marks.is_kept[first + i], best.score(image, i));
    if (number >= in_nms) best.write(rows, image, number, i, !with_nms, best.score(image, i));
  }
  for (int64_t at = 6 * survivors + threadIdx.x; at < 6 * count; at += kRowThreads)
    rows[6 * first + at] = T(-1);
}

}  // namespace ssd_ops
