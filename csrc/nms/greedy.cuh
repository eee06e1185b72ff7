// Exact greedy NMS on the GPU, of many equally long segments (images) at once. No synchronisation with the
// host, memory linear in the boxes, and the kept boxes of the CPU, in its order.
//
// There are two ways; greedy.cu.h chooses by the number of segments:
//   greedy_block.cuh   one block for each segment, one launch
//   greedy_spread.cuh  every segment spread over the whole GPU, several launches (and greedy_resolve.cuh)
//
// A Source gives, for box i of a segment: `Score score(segment, i)`, `Box<T> box(segment, i)` and, where
// kGrouped, `int64_t group(segment, i)`: only boxes of one group suppress each other. A Writer gets every box
// once: `kept` with its place among the kept ones, or, where kWritesOthers, `other` with a place after them.
// Where kWritesRanks, `ranked` gets the rank of every box by score. At the end all threads of `parts`
// blocks, numbered from 0, call `done` with the number kept.
#pragma once

#include "common/device.cuh"
#include "common/order.h"
#include "nms/prune.h"

namespace ssd_ops {

constexpr int kNmsThreads = 1024;
constexpr uint32_t kDroppedKey = 0xffffffffu;  // of a NaN score; no number has it

template <typename T>
struct NmsPlan {
  int64_t segments, count;
  int64_t max_ranked;  // candidates of a segment: the first ones by rank
  int64_t max_kept;    // the search ends there
  OverlapLimit<T> limit;
};

// Upper half the score, highest first; lower half the index, so that equal scores keep their order.
__device__ __forceinline__ uint64_t rank_key(float score, int64_t index) {
  const uint32_t key = score == score ? descending_key(score) : kDroppedKey;
  return static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(index);
}

// Whether a kept box drops another: they overlap beyond the limit.
template <typename T>
__device__ __forceinline__ bool suppresses(Box<T> kept, Box<T> box, T box_area, OverlapLimit<T> limit) {
  const T inter = intersection(kept, box);
  if (!(inter > T(0))) return false;
  const T base = base_area(limit.metric, inter, area(kept), box_area);
  return inter >= quick_threshold(limit.threshold) * base && overlap(inter, base) > limit.threshold;
}

// Settles a tile of 32 boxes among themselves, by one warp with a lane for each: a candidate is kept if no kept
// box before it in the tile suppresses it. `overlap` are the boxes before this lane's that would. As that depends
// on boxes before alone, each vote makes one more link of any chain right, and two equal votes are the answer.
__device__ __forceinline__ unsigned settle_clear(unsigned candidates, unsigned overlap) {
  const bool is_candidate = (candidates >> lane_index() & 1) != 0;
  unsigned kept = candidates, before = 0;
  while (kept != before) {
    before = kept;
    kept = __ballot_sync(kAllLanes, is_candidate && (overlap & before) == 0);
  }
  return kept;
}

// Boxes of a tile, a bit each: those that are kept, and those that nothing can be said of yet.
struct Settled {
  unsigned kept, open;
};

// Settles what can be said now of a tile where more is to be known of boxes outside. `open` are the candidates. A
// box is dropped once one of `overlap` is kept; it is kept once all of them are dropped, if it is `clear`: nothing
// outside the tile suppresses it.
__device__ __forceinline__ Settled settle(unsigned open, unsigned clear, unsigned overlap) {
  if ((open & ~clear) == 0) return {settle_clear(open, overlap), 0};
  const unsigned own = 1u << lane_index();
  unsigned kept = 0, decided = kAllLanes;
  while (decided != 0) {
    const bool is_open = (open & own) != 0;
    const unsigned keep =
        __ballot_sync(kAllLanes, is_open && (clear & own) != 0 && (overlap & (kept | open)) == 0);
    decided = keep | __ballot_sync(kAllLanes, is_open && (overlap & kept) != 0);
    kept |= keep;
    open &= ~decided;
  }
  return {kept, open};
}

// The boxes that are not kept, by index, at the places after the kept ones.
template <typename Writer>
__device__ __forceinline__ void write_others(const Writer& writer, int64_t segment, int count, int num_kept,
                                             const unsigned* is_kept,  // [count] bits
                                             int* before,              // [words]: room to work in
                                             int* warp_sums) {
  const int words = (count + 31) / 32, thread = static_cast<int>(threadIdx.x);
  int kept_in_words = 0;
  for (int begin = 0; begin < words; begin += kNmsThreads) {
    const int w = begin + thread;
    int total;
    const int sum = block_exclusive_sum(w < words ? __popc(is_kept[w]) : 0, warp_sums, total);
    if (w < words) before[w] = kept_in_words + sum;
    kept_in_words += total;
  }
  __syncthreads();
  for (int i = thread; i < count; i += kNmsThreads) {
    if (test_bit(is_kept, i)) continue;
    const int kept_before = before[i / 32] + __popc(is_kept[i / 32] & lanes_below(i % 32));
    writer.other(segment, num_kept + i - kept_before, i);
  }
}

}  // namespace ssd_ops
