// The source and the writer of nms and nms_padded.
#pragma once

#include "nms/greedy.cuh"

namespace ssd_ops {

template <typename T, typename Score>
struct BoxList {
  static constexpr bool kGrouped = false;
  Input boxes, scores;
  int64_t count;

  __device__ Score score(int64_t segment, int64_t i) const { return load<Score>(scores, segment * count + i); }
  __device__ Box<T> box(int64_t segment, int64_t i) const { return load_row<T>(boxes, segment * count + i); }
};

struct PaddedIndices {
  int64_t count;
  int64_t *indices, *counts;

  __device__ void kept(int64_t segment, int64_t place, int64_t index) const {
    indices[segment * count + place] = index;
  }
  __device__ void other(int64_t segment, int64_t place, int64_t) const { indices[segment * count + place] = -1; }
  __device__ void done(int64_t segment, int64_t num_kept) const { counts[segment] = num_kept; }
};

}  // namespace ssd_ops
