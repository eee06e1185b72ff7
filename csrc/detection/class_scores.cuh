// The scores of detect and multiclass_nms, and the best one of each box: the first step of portions.cuh.
#pragma once

#include "common/activation.h"
#include "common/device.cuh"
#include "common/order.h"

namespace ssd_ops {

// A candidate's place in the order of detections: by score, then class, then box.
template <typename T>
struct alignas(2 * sizeof(T)) Candidate {
  using Key = typename FloatTraits<T>::Bits;
  Key key;        // descending_key of the score
  uint32_t flat;  // class * N + box

  __device__ bool operator<(const Candidate& other) const {
    return key < other.key || (key == other.key && flat < other.flat);
  }
  // After all: no score has this key.
  __device__ static Candidate end() { return {~Key(0), 0}; }
};

struct ClassRange {
  int begin, end;
};

// Scores of [B, N, width] tensors: of every column, but of the first, the background, with softmax.
template <typename T, Activation kActivation>
struct ClassScores {
  static constexpr Activation kActivationOf = kActivation;
  static constexpr bool kSoftmax = kActivation == Activation::kSoftmax;
  Input in;
  int64_t num_boxes, width;
  const int32_t* best_class;  // [B, N], or null where all classes count
  // [B, N]: before which the candidates of the level of each box come; null where there are no levels.
  const Candidate<T>* level_end;

  __device__ int64_t num_classes() const { return width - kSoftmax; }
  // A row: image * num_boxes + box.
  __device__ T logit(int64_t row, int64_t column) const { return load<T>(in, row * width + column); }
  // `softmax` is of the row, where there is one.
  __device__ T score(int64_t row, int64_t category, Softmax<T> softmax) const {
    const T x = logit(row, category + kSoftmax);
    if constexpr (kSoftmax) return probability(softmax, x);
    if constexpr (kActivation == Activation::kSigmoid) return sigmoid(x);
    return x;
  }
  __device__ Softmax<T> softmax(int64_t row) const {
    if constexpr (kSoftmax) return softmax_of<T>([&](int64_t c) { return logit(row, c); }, width);
    return {};
  }
  // The classes that a row has candidates of, if their scores are over the threshold.
  __device__ ClassRange classes(int64_t row) const {
    if (best_class == nullptr) return {0, static_cast<int>(num_classes())};
    return {best_class[row], best_class[row] + 1};
  }
  // Before which the candidates of a row come, and before `to`.
  __device__ Candidate<T> end_of(int64_t row, Candidate<T> to) const {
    return level_end != nullptr && level_end[row] < to ? level_end[row] : to;
  }
};

// The positive scores cut into bins of equal ratios, 128 to a power of two, from 16 downwards. Bin 0 has what
// is more, the last one what is less.
constexpr int kBins = 2048;

template <typename T>
struct ScoreBins {
  using F = FloatTraits<T>;
  using Key = typename F::Bits;
  static constexpr int kShift = F::kMantissa - 7;
  static constexpr Key kGreatest = (F::kBias + 4) << F::kMantissa;  // the bits of 16
  static constexpr Key kFirst = ~(kGreatest | Key(1) << (8 * sizeof(T) - 1));

  // Of a descending_key.
  static __device__ int of(Key key) {
    return key <= kFirst ? 0 : static_cast<int>(min_of<Key>((key - kFirst) >> kShift, kBins - 1));
  }
  // The least key in a bin.
  static __device__ Key begin(int bin) {
    return bin == 0 ? 0 : bin == kBins ? ~Key(0) : kFirst + (static_cast<Key>(bin) << kShift);
  }
};

// What the best score of a box says about all its scores. exp is not exact, so that another score of the box
// can be a little more; the bound is wider than that by far.
template <typename T>
__device__ __forceinline__ T ceiling_of(T best) {
  return best * T(1.001) + FloatTraits<T>::kMinNormal;
}

// The best scores of all boxes, and how many of them there are in each bin.
template <typename T>
struct BestScores {
  T* best;              // [B, N]: may be NaN, or -infinity
  Softmax<T>* softmax;  // [B, N], or null
  int32_t* bins;        // [B, kBins]: boxes with a best score over the threshold. 0 at first
};

constexpr int kBestThreads = 256;
constexpr int kThreadsOfRow = 4;
constexpr int64_t kBestShared = 32 * 1024;                   // bytes of a block, about: several run at once
constexpr int kMostBestRows = kBestThreads / kThreadsOfRow;  // of a block

// Rows in shared memory have an odd length, so that threads a row apart meet different banks.
SSD_HOST_DEVICE int64_t best_row_length(int64_t width) {
  return width | 1;
}

// A block takes `rows` rows, in shared memory: the logits, then with softmax their exponentials.
template <typename T, typename Scores>
__global__ void __launch_bounds__(kBestThreads)
    best_scores_kernel(Scores scores, int64_t all_rows, int rows, T threshold, BestScores<T> out) {
  SSD_DYNAMIC_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(scores.width);
  const int length = static_cast<int>(best_row_length(width));
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows;
  const int here = static_cast<int>(min_of<int64_t>(rows, all_rows - first)), numbers = here * width;
#pragma unroll 4
  for (int e = thread; e < numbers; e += kBestThreads)
    tile[length == width ? e : e + e / width] = load<T>(scores.in, first * scores.width + e);
  __syncthreads();

  const int own = thread / kThreadsOfRow, part = thread % kThreadsOfRow;
  T* row = tile + own * length;
  T best = -std::numeric_limits<T>::infinity();
  if (own < here)
    for (int c = part; c < width; c += kThreadsOfRow) best = row[c] > best ? row[c] : best;
  for (int step = kThreadsOfRow / 2; step > 0; step /= 2)
    best = max_of(best, __shfl_xor_sync(kAllLanes, best, step));
  if constexpr (Scores::kSoftmax) {
    if (own < here)
      for (int c = part; c < width; c += kThreadsOfRow) row[c] = exp(row[c] - best);
    __syncwarp();
  }
  if (own >= here || part != 0) return;
  const int64_t at = first + own;
  if constexpr (Scores::kSoftmax) {
    // In the order of softmax_of.
    T sum = 0, most = 0;
#pragma unroll 4
    for (int c = 0; c < width; ++c) {
      sum += row[c];
      if (c > 0) most = row[c] > most ? row[c] : most;
    }
    out.softmax[at] = {best, sum};
    best = most / sum;
  } else if constexpr (Scores::kActivationOf == Activation::kSigmoid) {
    best = sigmoid(best);
  }
  out.best[at] = best;
  if (best > threshold)
    atomicAdd(&out.bins[at / scores.num_boxes * kBins + ScoreBins<T>::of(descending_key(best))], 1);
}

// The class with the highest score of each box that has a candidate, the first on ties; NaN is never the
// highest. One warp a box.
template <typename T, typename Scores>
__global__ void __launch_bounds__(kBestThreads)
    best_class_kernel(Scores scores, BestScores<T> best, int64_t all_rows, T threshold,
                      int32_t* best_class) {  // [B, N]
  const int64_t row = global_index() / kWarp;
  if (row >= all_rows) return;
  Candidate<T> first = Candidate<T>::end();
  if (ceiling_of(best.best[row]) > threshold) {
    const Softmax<T> softmax = Scores::kSoftmax ? best.softmax[row] : Softmax<T>{};
    for (int64_t c = lane_index(); c < scores.num_classes(); c += kWarp) {
      const T score = scores.score(row, c, softmax);
      const Candidate<T> found{descending_key(score), static_cast<uint32_t>(c)};
      if (score == score && found < first) first = found;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Candidate<T> other{__shfl_xor_sync(kAllLanes, first.key, step),
                             __shfl_xor_sync(kAllLanes, first.flat, step)};
    first = other < first ? other : first;
  }
  if (lane_index() == 0) best_class[row] = static_cast<int32_t>(first.flat);
}

}  // namespace ssd_ops
