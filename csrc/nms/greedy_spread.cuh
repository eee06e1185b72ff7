// Greedy NMS with every segment spread over the whole GPU (greedy.cuh), in these steps:
//   nms_count_kernel,
//   or nms_chunks_kernel and nms_rank_kernel,
//   or nms_keys_kernel, a sort and nms_gather_kernel   the boxes by rank, that is by score
//   nms_overlaps_kernel, nms_head_kernel               the first boxes (greedy_head.cuh), where there are many, and
//   nms_sweep_kernel, nms_rest_kernel                  what they drop and what is left; again with those
//   nms_starts_kernel, nms_file_kernel                 what is left, by cell of a grid (prune.h), if it pays
//   nms_resolve_kernel                                 which boxes are kept (greedy_resolve.cuh)
//   nms_finish_kernel, nms_others_kernel               the output
//   nms_only_head_kernel                               in place of all after the overlaps: a segment that is one head
#pragma once

#include "common/block_sort.cuh"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kSpreadThreads = 256;
constexpr int kTile = kWarp;  // boxes, by rank, that are decided together

#ifdef SSD_OPS_EMULATION
constexpr int kMostCompared = 280, kChunk = 256;  // so that the tests' sets have more
#else
constexpr int kMostCompared = 2048;  // boxes that are ranked by comparing each with all
constexpr int kChunk = 512;          // boxes that are sorted by themselves first
#endif
constexpr int kRankedByBlock = 64, kMostRankedByBlock = 256;  // boxes that one block ranks among all

// Smaller for higher scores; the greatest of all for NaN.
template <typename Score>
__device__ __forceinline__ typename FloatTraits<Score>::Bits score_key(Score score) {
  using Key = typename FloatTraits<Score>::Bits;
  return score == score ? descending_key(score) : ~Key(0);
}

// What chunks are sorted by: the key, then the index.
template <typename Key>
struct ChunkEntry {
  Key key;
  uint32_t index;

  __device__ bool operator<(const ChunkEntry& other) const {
    return key < other.key || (key == other.key && index < other.index);
  }
  __device__ ChunkEntry of_lane_xor(int mask) const {
    return {__shfl_xor_sync(kAllLanes, key, mask), __shfl_xor_sync(kAllLanes, index, mask)};
  }
};

// Sorts chunks of boxes by score. `chunks` for each segment, a block each.
template <typename Score, typename Source>
__global__ void __launch_bounds__(kChunk)
    nms_chunks_kernel(Source source, int64_t count, int64_t chunks,
                      typename FloatTraits<Score>::Bits* keys,  // [segments, count], chunk by chunk
                      int32_t* indices) {                       // the same
  using Key = typename FloatTraits<Score>::Bits;
  __shared__ ChunkEntry<Key> room[2 * kChunk];
  const int64_t segment = blockIdx.x / chunks, at = blockIdx.x % chunks * kChunk + threadIdx.x;
  // What is missing goes last.
  const uint32_t index = at < count ? static_cast<uint32_t>(at) : ~0u;
  const ChunkEntry<Key> entry{at < count ? score_key(source.score(segment, at)) : ~Key(0), index};
  const ChunkEntry<Key> sorted = sorted_by_block<kChunk>(entry, room);
  if (at >= count) return;
  keys[segment * count + at] = sorted.key;
  indices[segment * count + at] = static_cast<int32_t>(sorted.index);
}

// Scores as sortable numbers; dropped ones go last. Scores of 32 bits leave room for the segment above them.
template <typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_keys_kernel(Source source, int64_t segments, int64_t count,
                    uint64_t* keys,     // [segments * count]
                    int32_t* values) {  // [segments * count]
  const int64_t at = global_index();
  if (at >= segments * count) return;
  const int64_t segment = at / count, index = at % count;
  const auto key = score_key(source.score(segment, index));
  keys[at] = sizeof(key) == 4 ? static_cast<uint64_t>(segment) << 32 | key : key;
  values[at] = static_cast<int32_t>(index);
}

constexpr uint8_t kUndecided = 0, kKept = 1, kDropped = 2;  // states of a box

// All boxes in rank order, and what the grid over them is made from.
template <typename T>
struct Ranked {
  int32_t* order;          // [segments, count]: index of a rank
  T* boxes;                // [segments, count, 4]
  int64_t* groups;         // [segments, count], or null
  uint8_t* states;         // [segments, count]
  uint8_t* index_is_kept;  // [segments, count], by index, or null where the writer needs no others
  int64_t max_cells;       // of the grid; 1: no grid, boxes are looked through by rank
  int32_t sides[7];        // cells along one side of the grid, where groups are in 1, 2, 4 .. 64 buckets
  int64_t parts;           // of a segment: kNmsThreads boxes each
  double* bounds;          // [segments, 4]: of the grid, left, top, right, bottom
  // These are 0 at first.
  unsigned long long* groups_seen;  // [segments]: a bit for each number that group_hash gave
  int32_t* rank_kept;               // [segments, parts]: the boxes kept of each part, by rank
  int32_t* index_kept;              // [segments, parts]: the same by index
};

// Boxes that are not decided yet, in the order of rank: all of them, or those that a head leaves.
template <typename T>
struct Rest {
  int32_t* ranks;   // [segments, count], or null: all boxes are here
  T* boxes;         // [segments, count, 4]
  int64_t* groups;  // [segments, count], or null
  uint8_t* states;  // [segments, count]
  int32_t* counts;  // [segments], or null

  __device__ int64_t count(const NmsPlan<T>& plan, int64_t segment) const {
    return counts ? counts[segment] : plan.count;
  }
  // Of the box at a place of the segment that begins at `first`.
  __device__ int64_t rank(int64_t first, int64_t place) const { return ranks ? ranks[first + place] : place; }
};

// 0..63, spread evenly.
__device__ __forceinline__ int group_hash(int64_t group) {
  return static_cast<int>(static_cast<uint64_t>(group) * 0x9e3779b97f4a7c15u >> 58);
}

// A grid of the boxes of each bucket of groups, one after another.
struct BucketGrid {
  BoxGrid grid;
  int shift;  // from a hash to a bucket

  template <typename T>
  __device__ BucketGrid(const Ranked<T>& ranked, int64_t segment) {
    const int seen = ranked.groups ? __popcll(ranked.groups_seen[segment]) : 1;
    int halvings = 0;
    while (2 << halvings <= seen && ranked.sides[halvings + 1] > 0) ++halvings;
    shift = 6 - halvings;
    const int64_t side = ranked.sides[halvings];
    const double* b = ranked.bounds + 4 * segment;
    grid = {grid_axis(b[0], b[2], side), grid_axis(b[1], b[3], side)};
  }
  __device__ int64_t first_cell(int64_t group) const {
    return static_cast<int64_t>(group_hash(group) >> shift) * grid.rows.side * grid.rows.side;
  }
};

// Puts box `index` of a segment at its rank, with what can be said of it alone.
template <typename T, typename Source>
__device__ void gather(const Source& source, const NmsPlan<T>& plan, const Ranked<T>& ranked, int64_t segment,
                       int64_t rank, int64_t index, uint64_t& groups_seen) {
  const int64_t at = segment * plan.count + rank;
  const auto score = source.score(segment, index);
  const Box<T> box = source.box(segment, index);
  uint8_t state = kKept;
  if (!(score == score) || rank >= plan.max_ranked) {
    state = kDropped;
  } else if (can_overlap(box, area(box))) {
    state = kUndecided;
  }
  store_row(ranked.boxes, at, box);
  if constexpr (Source::kGrouped) {
    const int64_t group = source.group(segment, index);
    ranked.groups[at] = group;
    groups_seen |= uint64_t{1} << group_hash(group);
  }
  ranked.order[at] = static_cast<int32_t>(index);
  ranked.states[at] = state;
  if (ranked.index_is_kept) ranked.index_is_kept[segment * plan.count + index] = 0;
}

// Called by whole warps.
template <typename Source, typename T>
__device__ void tell_groups(uint64_t seen, const Ranked<T>& ranked, int64_t segment) {
  if constexpr (Source::kGrouped) {
    if (ranked.max_cells == 1) return;
    for (int step = kWarp / 2; step > 0; step /= 2) seen |= __shfl_xor_sync(kAllLanes, seen, step);
    if (lane_index() == 0) atomicOr(&ranked.groups_seen[segment], static_cast<unsigned long long>(seen));
  }
}

// After a sort, which has the index of each rank in `sorted` [segments, count]. `blocks` for each segment.
template <typename T, typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_gather_kernel(Source source, NmsPlan<T> plan, Ranked<T> ranked, int64_t blocks,
                      const int32_t* sorted) {
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks;
  uint64_t groups_seen = 0;
  for (int64_t rank = block * kSpreadThreads + threadIdx.x; rank < plan.count;
       rank += blocks * kSpreadThreads)
    gather(source, plan, ranked, segment, rank, sorted[segment * plan.count + rank], groups_seen);
  tell_groups<Source>(groups_seen, ranked, segment);
}

// Ranks boxes by how many boxes of each chunk come before them, and gathers them. `blocks` for each
// segment, with of_block boxes; shared memory holds the keys of a segment.
template <typename T, typename Key, typename Source>
__global__ void __launch_bounds__(kNmsThreads)
    nms_rank_kernel(Source source, NmsPlan<T> plan, Ranked<T> ranked, int of_block, int64_t blocks,
                    const Key* chunk_keys,           // [segments, count], of nms_chunks_kernel
                    const int32_t* chunk_indices) {  // the same
  SSD_DYNAMIC_SHARED(shared);
  __shared__ int ranks[kMostRankedByBlock];
  Key* keys = reinterpret_cast<Key*>(shared);
  const int64_t segment = blockIdx.x / blocks;
  const int64_t count = plan.count;
  const int thread = static_cast<int>(threadIdx.x), boxes = static_cast<int>(count);
  const int own_part = thread / of_block, in_block = thread % of_block, parts = kNmsThreads / of_block;
  const int mine = static_cast<int>(blockIdx.x % blocks) * of_block + in_block;
  const int chunks = (boxes + kChunk - 1) / kChunk;
#pragma unroll 4
  for (int i = thread; i < chunks * kChunk; i += kNmsThreads)
    keys[i] = i < boxes ? chunk_keys[segment * count + i] : ~Key(0);
  if (thread < of_block) ranks[thread] = 0;
  __syncthreads();
  if (mine < boxes) {
    const Key key = keys[mine];
    const int own = mine / kChunk;
    int before = 0;
    for (int chunk = own_part; chunk < chunks; chunk += parts) {
      const Key* others = keys + chunk * kChunk;
      // Equal keys of an earlier chunk are of lower index. No number's key is the greatest.
      const bool is_earlier = chunk < own;
      const Key bound = key + (is_earlier && key != ~Key(0));
      int place = 0;
#pragma unroll
      for (int step = kChunk / 2; step > 0; step /= 2) place += others[place + step - 1] < bound ? step : 0;
      place += others[place] < bound;
      if (is_earlier && key == ~Key(0)) place = kChunk;
      before += chunk == own ? mine % kChunk : place;
    }
    atomicAdd(&ranks[in_block], before);
  }
  __syncthreads();
  if (thread >= of_block) return;
  uint64_t groups_seen = 0;
  if (mine < boxes)
    gather(source, plan, ranked, segment, ranks[thread], chunk_indices[segment * count + mine], groups_seen);
  tell_groups<Source>(groups_seen, ranked, segment);
}

// Ranks few boxes by comparing each with all, a warp for each, and gathers them. `blocks` for each segment.
template <typename T, typename Score, typename Source>
__global__ void __launch_bounds__(kNmsThreads)
    nms_count_kernel(Source source, NmsPlan<T> plan, Ranked<T> ranked, int64_t blocks) {
  __shared__ typename FloatTraits<Score>::Bits keys[kMostCompared];
  __shared__ int ranks[kTile];
  const int64_t segment = blockIdx.x / blocks;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), count = static_cast<int>(plan.count);
  const int first = static_cast<int>(blockIdx.x % blocks) * kTile, own = first + warp_index();
  for (int i = thread; i < count; i += kNmsThreads) keys[i] = score_key(source.score(segment, i));
  __syncthreads();
  if (own < count) {
    const auto key = keys[own];
    int before = 0;
    // Of equal keys, those of lower index come before.
#pragma unroll 4
    for (int i = lane; i < own; i += kWarp) before += keys[i] <= key;
#pragma unroll 4
    for (int i = own + lane; i < count; i += kWarp) before += keys[i] < key;
    for (int step = kWarp / 2; step > 0; step /= 2) before += __shfl_xor_sync(kAllLanes, before, step);
    if (lane == 0) ranks[warp_index()] = before;
  }
  __syncthreads();
  if (thread >= kTile) return;
  uint64_t groups_seen = 0;
  if (first + thread < count)
    gather(source, plan, ranked, segment, ranks[thread], first + thread, groups_seen);
  tell_groups<Source>(groups_seen, ranked, segment);
}

// The boxes of the rest by cell of the grid, in any order within a cell: nothing depends on it but the time.
template <typename T>
struct Filed {
  int32_t* cells;   // [segments, count], as in the rest: the cell of a box
  int32_t* slots;   // [segments, count], as in the rest: its place in the cell
  int32_t* counts;  // [segments, max_cells]: boxes in a cell, 0 at first
  int32_t* starts;  // [segments, max_cells + 1]
  int32_t* places;  // [segments, count], like the next two by cell: the place in the rest
  T* boxes;         // [segments, count, 4]
  int64_t* groups;  // [segments, count], or null
};

// Where each cell begins. Called by a block of kNmsThreads.
template <typename T>
__device__ void find_starts(const Ranked<T>& ranked, const Filed<T>& filed, int64_t segment) {
  __shared__ int sums[kNmsThreads / kWarp];
  const int64_t cells = ranked.max_cells;
  const int32_t* counts = filed.counts + segment * cells;
  int32_t* starts = filed.starts + segment * (cells + 1);
  int filled = 0;
  for (int64_t begin = 0; begin < cells; begin += kNmsThreads) {
    const int64_t cell = begin + threadIdx.x;
    int total;
    const int before = block_exclusive_sum(cell < cells ? counts[cell] : 0, sums, total);
    if (cell < cells) starts[cell] = filled + before;
    filled += total;
  }
  if (threadIdx.x == 0) starts[cells] = filled;
}

// One block for each segment.
template <typename T>
__global__ void __launch_bounds__(kNmsThreads) nms_starts_kernel(Ranked<T> ranked, Filed<T> filed) {
  find_starts(ranked, filed, blockIdx.x);
}

template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_file_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> rest, Filed<T> filed) {
  const int64_t at = global_index();
  if (at >= plan.segments * plan.count) return;
  const int64_t segment = at / plan.count, first = segment * plan.count, place = at - first;
  if (place >= rest.counts[segment]) return;
  const int64_t start = segment * (ranked.max_cells + 1) + filed.cells[at];
  const int64_t to = first + filed.starts[start] + filed.slots[at];
  filed.places[to] = static_cast<int32_t>(place);
  store_row(filed.boxes, to, load_row(rest.boxes, at));
  if (rest.groups) filed.groups[to] = rest.groups[at];
}

// The sum of a value over the block; every thread has to call it.
__device__ __forceinline__ int block_sum(int value, int* warp_sums) {
  int total;
  block_exclusive_sum(value, warp_sums, total);
  return total;
}

struct KeptSums {
  int before, all;
};

// The sums of kept_of(i) for all i below `at`, and for all below `count`. Every thread has to call it.
template <typename KeptOf>
__device__ __forceinline__ KeptSums sum_kept(int64_t count, int64_t at, const KeptOf& kept_of,
                                             int* warp_sums) {
  int before = 0, all = 0;
  for (int64_t i = threadIdx.x; i < count; i += kNmsThreads) {
    const int kept = kept_of(i);
    all += kept;
    before += i < at ? kept : 0;
  }
  before = block_sum(before, warp_sums);
  return {before, block_sum(all, warp_sums)};
}

// From states by rank to what the writer is told of the kept boxes. A block for each part of each segment.
template <typename T, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_finish_kernel(NmsPlan<T> plan, Ranked<T> ranked, Writer writer) {
  __shared__ int sums[kNmsThreads / kWarp];
  const int64_t segment = blockIdx.x / ranked.parts, part = blockIdx.x % ranked.parts;
  const int64_t first = segment * plan.count, rank = part * kNmsThreads + threadIdx.x;
  const int32_t* rank_kept = ranked.rank_kept + segment * ranked.parts;
  const KeptSums in_parts = sum_kept(ranked.parts, part, [&](int64_t p) { return rank_kept[p]; }, sums);
  const int64_t max_kept = min_of(plan.max_kept, plan.count);
  const int64_t num_kept = min_of<int64_t>(in_parts.all, max_kept);
  const bool kept = rank < plan.count && ranked.states[first + rank] == kKept;
  int in_part;
  const int64_t place = in_parts.before + block_exclusive_sum(kept, sums, in_part);
  if (rank < plan.count) {
    const int64_t index = ranked.order[first + rank];
    if constexpr (Writer::kWritesRanks) writer.ranked(segment, rank, index);
    if (kept && place < max_kept) {
      writer.kept(segment, place, index);
      if constexpr (Writer::kWritesOthers) {
        ranked.index_is_kept[first + index] = 1;
        atomicAdd(&ranked.index_kept[segment * ranked.parts + index / kNmsThreads], 1);
      }
    }
  }
  writer.done(segment, num_kept, part, ranked.parts);
}

// The boxes that are not kept, by index, at the places after the kept ones. Blocks as in nms_finish_kernel.
template <typename T, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_others_kernel(NmsPlan<T> plan, Ranked<T> ranked, Writer writer) {
  __shared__ int sums[kNmsThreads / kWarp];
  const int64_t segment = blockIdx.x / ranked.parts, part = blockIdx.x % ranked.parts;
  const int64_t first = segment * plan.count, index = part * kNmsThreads + threadIdx.x;
  const int32_t* index_kept = ranked.index_kept + segment * ranked.parts;
  const KeptSums in_parts = sum_kept(ranked.parts, part, [&](int64_t p) { return index_kept[p]; }, sums);
  const bool kept = index < plan.count && ranked.index_is_kept[first + index];
  int in_part;
  const int before = in_parts.before + block_exclusive_sum(kept, sums, in_part);
  if (index < plan.count && !kept) writer.other(segment, in_parts.all + index - before, index);
}

}  // namespace ssd_ops
