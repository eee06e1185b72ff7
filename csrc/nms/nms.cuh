// The source and the writer of nms, batched_nms and nms_padded.
#pragma once

#include "nms/greedy.cuh"

namespace ssd_ops {

template <typename T, typename Score, bool kWithGroups>
struct BoxList {
  static constexpr bool kGrouped = kWithGroups;
  Input boxes, scores;    // [segments, count, 4], [segments, count]
  const int64_t* groups;  // [segments, count], read only where kWithGroups
  int64_t count;

  __device__ Score score(int64_t segment, int64_t i) const {
    return load<Score>(scores, segment * count + i);
  }
  __device__ Box<T> box(int64_t segment, int64_t i) const { return load_row<T>(boxes, segment * count + i); }
  __device__ int64_t group(int64_t segment, int64_t i) const { return groups[segment * count + i]; }
};

struct PaddedIndices {
  static constexpr bool kWritesOthers = false, kWritesRanks = false;
  int64_t count;
  int64_t *indices, *counts;  // [segments, count], [segments]

  __device__ void kept(int64_t segment, int64_t place, int64_t index) const {
    indices[segment * count + place] = index;
  }
  __device__ void done(int64_t segment, int64_t num_kept, int64_t part, int64_t parts) const {
    const int64_t thread = part * blockDim.x + threadIdx.x;
    for (int64_t place = num_kept + thread; place < count; place += parts * blockDim.x)
      indices[segment * count + place] = -1;
    if (thread == 0) counts[segment] = num_kept;
  }
};

}  // namespace ssd_ops
