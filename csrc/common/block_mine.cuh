// The hardest negatives of an image, chosen by one block: hard_negative_mining and multibox_target.
#pragma once

#include "common/block_select.cuh"
#include "common/mining.h"

namespace ssd_ops {

// What the key of an anchor says where the anchor is no candidate. Every loss has a smaller key: the greatest
// is that of -infinity, which ends in zeros.
template <typename Key>
constexpr Key kIgnoredKey = ~Key(0);
template <typename Key>
constexpr Key kPositiveKey = ~Key(0) - 1;

// The dynamic shared memory of a block that mines. Its keys follow.
struct alignas(16) MiningSpace {
  SelectSpace select;
  unsigned num_positives, num_candidates;
};

template <typename Key>
constexpr int64_t mining_shared_bytes(int64_t num_keys) {
  const int64_t padded = (num_keys + kSelectBatch - 1) / kSelectBatch * kSelectBatch;
  return static_cast<int64_t>(sizeof(MiningSpace)) + padded * static_cast<int64_t>(sizeof(Key));
}

// Calls write(i, keys, is_hard) for every kSelectBatch anchors of an image, from i on. wanted(positives,
// candidates) says how many candidates are hard; of equal keys the first ones are. read(i, keys) is as for
// find_last. It is called once where the keys are kept in shared memory, and at every step of the search where
// they are not. `memory` has as many bytes as mining_shared_bytes says.
template <typename Key, bool kKeep, typename Read, typename Wanted, typename Write>
__device__ void mine_block(unsigned count, const Read& read, const Wanted& wanted, const Write& write,
                           unsigned char* memory) {
  MiningSpace& space = *reinterpret_cast<MiningSpace*>(memory);
  Four<Key>* kept = reinterpret_cast<Four<Key>*>(memory + sizeof(MiningSpace));
  static_assert(kSelectBatch == 4, "a batch is a row of four");
  constexpr unsigned kStep = kSelectBatch * kSelectThreads;
  const unsigned first = kSelectBatch * threadIdx.x;
  if (threadIdx.x == 0) space.num_positives = space.num_candidates = 0;
  __syncthreads();
  int positives = 0, candidates = 0;
  for (unsigned i = first; i < count; i += kStep) {
    Four<Key> four;
    read(i, four.v);
    if constexpr (kKeep) kept[i / kSelectBatch] = four;
    for (const Key key : four.v) {
      positives += key == kPositiveKey<Key>;
      candidates += key < kPositiveKey<Key>;
    }
  }
  positives = warp_inclusive_sum(positives);
  candidates = warp_inclusive_sum(candidates);
  if (lane_index() == kWarp - 1) {
    atomicAdd(&space.num_positives, static_cast<unsigned>(positives));
    atomicAdd(&space.num_candidates, static_cast<unsigned>(candidates));
  }
  __syncthreads();

  const auto keys_at = [&](unsigned i, Key(&keys)[kSelectBatch]) {
    if constexpr (kKeep) {
      const Four<Key> four =
          i < count ? kept[i / kSelectBatch] : Four<Key>{{~Key(0), ~Key(0), ~Key(0), ~Key(0)}};
      for (unsigned j = 0; j < kSelectBatch; ++j) keys[j] = four.v[j];
    } else {
      read(i, keys);
    }
  };
  // Hard are the keys below `last`, and of those equal to it the ones before `end`.
  const int64_t num_wanted = wanted(space.num_positives, space.num_candidates);
  Key last = num_wanted > 0 ? kPositiveKey<Key> : 0;
  unsigned end = 0;
  if (num_wanted > 0 && num_wanted < space.num_candidates) {
    const SelectEnd<Key> found = find_last<Key>(count, num_wanted, keys_at, space.select);
    last = found.last;
    end = count;
    if (found.left < found.equal) {  // the same search for the index
      const auto indices = [&](unsigned i, unsigned (&at)[kSelectBatch]) {
        Key keys[kSelectBatch];
        keys_at(i, keys);
        for (unsigned j = 0; j < kSelectBatch; ++j) at[j] = keys[j] == last ? i + j : ~0u;
      };
      const int known = __clz(static_cast<int>(count));
      end = find_last<unsigned>(count, found.left, indices, space.select, known).last + 1;
    }
  }
  for (unsigned i = first; i < count; i += kStep) {
    Key keys[kSelectBatch];
    bool is_hard[kSelectBatch];
    keys_at(i, keys);
    for (unsigned j = 0; j < kSelectBatch; ++j)
      is_hard[j] = keys[j] < last || (keys[j] == last && i + j < end);
    write(i, keys, is_hard);
  }
}

}  // namespace ssd_ops
