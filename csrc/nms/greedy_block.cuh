// Greedy NMS by one block for each segment (greedy.cuh): it sorts its boxes by score, and takes them in that
// order (greedy_tiles.cuh), as many at a time as it has threads. All it needs lies in shared memory.
#pragma once

#include "common/block_sort.cuh"
#include "nms/greedy_tiles.cuh"

namespace ssd_ops {

// Shared memory, beside what the kernel declares: for `count` boxes, of which kNmsThreads at a time are
// looked at.
template <typename T, bool kGrouped>
struct BlockRoom {
  static constexpr int64_t kOfBox = 4 * sizeof(T) + (kGrouped ? sizeof(int64_t) : 0);
  T *boxes, *kept_boxes;          // [kNmsThreads, 4], [count, 4]
  uint64_t* keys;                 // [count]
  int64_t *groups, *kept_groups;  // [kNmsThreads], [count], with groups
  unsigned* is_kept;              // [count] bits, by index
  int* before;                    // [words]: room to work in

  static int64_t bytes(int64_t count) {
    return (kNmsThreads + count) * kOfBox + count * 8 + (count + 31) / 32 * 8;
  }
  __device__ BlockRoom(unsigned char* at, int64_t count) {
    boxes = reinterpret_cast<T*>(at);
    kept_boxes = boxes + 4 * kNmsThreads;
    keys = reinterpret_cast<uint64_t*>(kept_boxes + 4 * count);
    groups = reinterpret_cast<int64_t*>(keys + count);
    kept_groups = groups + (kGrouped ? kNmsThreads : 0);
    is_kept = reinterpret_cast<unsigned*>(kept_groups + (kGrouped ? count : 0));
    before = reinterpret_cast<int*>(is_kept + (count + 31) / 32);
  }
};

template <typename T, typename Source, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_block_kernel(Source source, Writer writer, NmsPlan<T> plan) {
  constexpr bool kGrouped = Source::kGrouped;
  SSD_DYNAMIC_SHARED(shared);
  __shared__ GreedyTile tile;
  __shared__ int num_ranked;
  __shared__ int sums[kNmsThreads / kWarp];
  const int count = static_cast<int>(plan.count), words = (count + 31) / 32;
  const BlockRoom<T, kGrouped> room(shared, plan.count);
  const int64_t segment = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);

  if (thread == 0) tile.num_kept = tile.num_listed = num_ranked = 0;
  for (int w = thread; w < words; w += kNmsThreads) room.is_kept[w] = 0;
  for (int i = thread; i < count; i += kNmsThreads) room.keys[i] = rank_key(source.score(segment, i), i);
  __syncthreads();
  block_sort(room.keys, count);
  const int most = static_cast<int>(min_of(plan.max_ranked, plan.count));
  for (int rank = thread; rank < most; rank += kNmsThreads)
    if (static_cast<uint32_t>(room.keys[rank] >> 32) != kDroppedKey) atomicMax(&num_ranked, rank + 1);
  __syncthreads();

  const int max_kept = static_cast<int>(min_of(plan.max_kept, plan.count));
  for (int base = 0; base < num_ranked && tile.num_kept < max_kept; base += kNmsThreads) {
    if (base + thread < num_ranked) {
      const int64_t index = static_cast<uint32_t>(room.keys[base + thread]);
      store_row(room.boxes, thread, source.box(segment, index));
      if constexpr (kGrouped) room.groups[thread] = source.group(segment, index);
    }
    __syncthreads();
    const OrderedBoxes<T, int64_t, kGrouped> ordered{room.boxes, room.groups, nullptr,
                                                     min_of(kNmsThreads, num_ranked - base)};
    const KeptList<T, int64_t> kept{room.kept_boxes, room.kept_groups};
    keep_in_order(ordered, plan.limit, max_kept, kept, tile, [&](int i, int place) {
      const uint32_t index = static_cast<uint32_t>(room.keys[base + i]);
      writer.kept(segment, place, index);
      atomicOr(&room.is_kept[index / 32], 1u << (index % 32));
    });
  }

  if constexpr (Writer::kWritesRanks)
    for (int rank = thread; rank < count; rank += kNmsThreads)
      writer.ranked(segment, rank, static_cast<uint32_t>(room.keys[rank]));
  if constexpr (Writer::kWritesOthers)
    write_others(writer, segment, count, tile.num_kept, room.is_kept, room.before, sums);
  writer.done(segment, tile.num_kept, 0, 1);
}

}  // namespace ssd_ops
