// Where the candidates of each pyramid level end: the last of the `wanted` that come first. One block for each
// level of each image.
//
// Most levels have far more scores than the block should read. The `wanted` boxes with the highest best scores
// have as many candidates, so every candidate wanted is of a box whose best score is as high as the last of
// theirs: scores are read of about `wanted` boxes alone, and of more only where best scores are equal.
#pragma once

#include "common/block_select.cuh"
#include "detection/class_scores.cuh"

namespace ssd_ops {

// What fits well in the parameters of a kernel; more levels take more launches.
constexpr int kLevelsOfLaunch = 32;

struct LevelBegins {
  int count;
  int64_t begin[kLevelsOfLaunch + 1];  // the first box of each, and the end
};

// Beside the best scores of all boxes.
template <typename T>
struct LevelTopk {
  int32_t* boxes;      // [B, N], room to work in
  Candidate<T>* ends;  // [B, N]: before which the candidates of the level of each box come
};

template <typename T, typename Scores>
__global__ void __launch_bounds__(kSelectThreads)
    level_topk_kernel(Scores scores, LevelBegins levels, int64_t wanted, T threshold, BestScores<T> best,
                      LevelTopk<T> out) {
  using Key = typename FloatTraits<T>::Bits;
  __shared__ SelectSpace space;
  __shared__ int num_over, num_boxes;
  const int64_t image = blockIdx.x / levels.count;
  const int level = static_cast<int>(blockIdx.x % levels.count);
  const int64_t first_box = levels.begin[level], first_row = image * scores.num_boxes + first_box;
  const unsigned count = static_cast<unsigned>(levels.begin[level + 1] - first_box);
  T* bests = best.best + first_row;
  int32_t* boxes = out.boxes + first_row;
  const unsigned thread = threadIdx.x;

  if (thread == 0) num_over = num_boxes = 0;
  __syncthreads();
  for (unsigned i = thread; i - lane_index() < count; i += kSelectThreads) {
    const unsigned over = __ballot_sync(kAllLanes, i < count && bests[i] > threshold);
    if (lane_index() == 0) atomicAdd(&num_over, __popc(over));
  }
  __syncthreads();
  Key least = ~Key(0);
  if (num_over > wanted)
    least = find_last<Key>(
                count, wanted,
                [&](unsigned i, Key(&keys)[kSelectBatch]) {
                  for (unsigned j = 0; j < kSelectBatch; ++j)
                    keys[j] =
                        i + j < count && bests[i + j] > threshold ? descending_key(bests[i + j]) : ~Key(0);
                },
                space)
                .last;
  // Their order does not matter: the candidates have one of their own.
  for (unsigned i = thread; i < count; i += kSelectThreads) {
    const T most = ceiling_of(bests[i]);
    if (most > threshold && descending_key(most) <= least)
      boxes[atomicAdd(&num_boxes, 1)] = static_cast<int32_t>(i);
  }
  __syncthreads();

  const unsigned of_box = scores.best_class ? 1 : static_cast<unsigned>(scores.num_classes());
  const unsigned items = static_cast<unsigned>(num_boxes) * of_box;
  const auto candidate = [&](unsigned item) {
    const int64_t box = boxes[item / of_box], row = first_row + box;
    const Softmax<T> softmax = Scores::kSoftmax ? best.softmax[row] : Softmax<T>{};
    const int64_t category = scores.classes(row).begin + item % of_box;
    const T score = scores.score(row, category, softmax);
    if (!(score > threshold)) return Candidate<T>::end();
    return Candidate<T>{descending_key(score),
                        static_cast<uint32_t>(category * scores.num_boxes + first_box + box)};
  };
  Candidate<T> end = Candidate<T>::end();
  if (items >= wanted) {  // also where they are as many: other boxes are no candidates then
    const SelectEnd<Key> found = find_last<Key>(
        items, wanted,
        [&](unsigned i, Key(&keys)[kSelectBatch]) {
          for (unsigned j = 0; j < kSelectBatch; ++j)
            keys[j] = i + j < items ? candidate(i + j).key : ~Key(0);
        },
        space);
    end.key = found.last;
    if (end.key != ~Key(0))
      end.flat = 1 + find_last<uint32_t>(
                         items, found.left,
                         [&](unsigned i, uint32_t (&flats)[kSelectBatch]) {
                           for (unsigned j = 0; j < kSelectBatch; ++j) {
                             const Candidate<T> c = i + j < items ? candidate(i + j) : Candidate<T>::end();
                             flats[j] = c.key == end.key ? c.flat : ~uint32_t{0};
                           }
                         },
                         space)
                         .last;
  }
  for (unsigned i = thread; i < count; i += kSelectThreads) {
    out.ends[first_row + i] = end;
    const T most = ceiling_of(bests[i]);
    if (!(most > threshold) || descending_key(most) <= end.key) continue;
    // The box has no candidate any more.
    if (best.bins && bests[i] > threshold)
      atomicAdd(&best.bins[image * kBins + ScoreBins<T>::of(descending_key(bests[i]))], -1);
    bests[i] = std::numeric_limits<T>::quiet_NaN();
  }
}

}  // namespace ssd_ops
