// Greedy NMS with every segment spread over the whole GPU (greedy.cuh), in these steps:
//   nms_rank_kernel, or nms_keys_kernel and a sort   ranks by score
//   nms_gather_kernel                                the boxes by rank
//   nms_cells_kernel, a sort, nms_file_kernel        where it pays, the boxes by cell of a grid (prune.h)
//   nms_resolve_kernel                               which boxes are kept
//   nms_finish_kernel                                the output
//
// nms_resolve_kernel has a warp for each box, which looks through the cells that matter for boxes of higher
// rank that overlap it. A kept one ends the search; an undecided one is waited for. Blocks take their boxes
// in the order of rank from a counter, so whatever a warp waits for is running or done. Chains of dependence
// are short (2 to 12 links for 1,000 to 100,000 boxes, see Blelloch et al., arXiv 1202.3205).
#pragma once

#include "common/block_sort.cuh"
#include "nms/greedy.cuh"

namespace ssd_ops {

constexpr int kSpreadThreads = 256;

// Scores as sortable numbers; dropped ones go last. Scores of 32 bits leave room for the segment above them.
template <typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_keys_kernel(Source source, int64_t segments, int64_t count,
                    uint64_t* keys,     // [segments * count]
                    int32_t* values) {  // [segments * count]
  const int64_t at = global_index();
  if (at >= segments * count) return;
  const int64_t segment = at / count, index = at % count;
  const auto score = source.score(segment, index);
  uint64_t key = ~uint64_t{0};
  if constexpr (sizeof(score) == 4) {
    key = static_cast<uint64_t>(segment) << 32 | rank_key(score, 0) >> 32;
  } else {
    if (score == score) key = descending_key(score);
  }
  keys[at] = key;
  values[at] = static_cast<int32_t>(index);
}

// The same order by one block a segment, where the keys fit in its shared memory.
template <typename Source>
__global__ void __launch_bounds__(kNmsThreads) nms_rank_kernel(Source source, int64_t count,
                                                               int32_t* order) {  // [segments, count]
  SSD_DYNAMIC_SHARED(shared);
  uint64_t* keys = reinterpret_cast<uint64_t*>(shared);
  const int64_t segment = blockIdx.x;
  for (int64_t i = threadIdx.x; i < count; i += kNmsThreads) keys[i] = rank_key(source.score(segment, i), i);
  __syncthreads();
  block_sort(keys, static_cast<int>(count));
  for (int64_t i = threadIdx.x; i < count; i += kNmsThreads)
    order[segment * count + i] = static_cast<int32_t>(static_cast<uint32_t>(keys[i]));
}

constexpr uint8_t kUndecided = 0, kKept = 1, kDropped = 2;  // states of a box

// All boxes in rank order, and the grid over them. side 1: no grid, boxes are looked through by rank.
template <typename T>
struct Ranked {
  const int32_t* order;    // [segments, count]: index of a rank
  T* boxes;                // [segments, count, 4]
  int64_t* groups;         // [segments, count], or null
  uint8_t* states;         // [segments, count]
  uint8_t* index_is_kept;  // [segments, count], by index
  // Of the centers: left, top, right and bottom, as keys of which the greatest counts. 0 at first.
  uint64_t* bounds;          // [segments, 4]
  unsigned long long* next;  // [1]: the block to start, 0 at first
  int64_t side;
};

__device__ __forceinline__ uint64_t ascending_key(double x) {
  return ~descending_key(x);
}
__device__ __forceinline__ double of_descending_key(uint64_t key) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  return bit_cast<double>(key & kSign ? key : ~key & ~kSign);
}

template <typename T>
__device__ __forceinline__ BoxGrid grid_of(const Ranked<T>& ranked, int64_t segment) {
  const uint64_t* b = ranked.bounds + 4 * segment;
  return {grid_axis(of_descending_key(b[0]), of_descending_key(~b[2]), ranked.side),
          grid_axis(of_descending_key(b[1]), of_descending_key(~b[3]), ranked.side)};
}

// The boxes by rank, with their first states and the bounds of their centers. `blocks` for each segment.
template <typename T, typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_gather_kernel(Source source, NmsPlan<T> plan, Ranked<T> ranked, int64_t blocks) {
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks;
  uint64_t bounds[4] = {0, 0, 0, 0};
  for (int64_t rank = block * kSpreadThreads + threadIdx.x; rank < plan.count;
       rank += blocks * kSpreadThreads) {
    const int64_t at = segment * plan.count + rank, index = ranked.order[at];
    const auto score = source.score(segment, index);
    const Box<T> box = source.box(segment, index);
    uint8_t state = kKept;
    if (!(score == score) || rank >= plan.max_ranked) {
      state = kDropped;
    } else if (can_overlap(box, area(box))) {
      state = kUndecided;
      bounds[0] = max_of(bounds[0], descending_key(center_x(box)));
      bounds[1] = max_of(bounds[1], descending_key(center_y(box)));
      bounds[2] = max_of(bounds[2], ascending_key(center_x(box)));
      bounds[3] = max_of(bounds[3], ascending_key(center_y(box)));
    }
    store_row(ranked.boxes, at, box);
    if constexpr (Source::kGrouped) ranked.groups[at] = source.group(segment, index);
    ranked.states[at] = state;
    ranked.index_is_kept[segment * plan.count + index] = 0;
  }
  if (ranked.side == 1) return;
  for (int side = 0; side < 4; ++side) {
    uint64_t key = bounds[side];
    for (int step = kWarp / 2; step > 0; step /= 2) key = max_of(key, __shfl_xor_sync(kAllLanes, key, step));
    if (lane_index() == 0 && key != 0)
      atomicMax(reinterpret_cast<unsigned long long*>(&ranked.bounds[4 * segment + side]),
                static_cast<unsigned long long>(key));
  }
}

// The cell of each box; decided boxes go to one cell past the grid, where no box looks.
template <typename T>
__global__ void __launch_bounds__(kSpreadThreads) nms_cells_kernel(NmsPlan<T> plan, Ranked<T> ranked,
                                                                   uint64_t* keys,     // [segments * count]
                                                                   int32_t* values) {  // [segments * count]
  const int64_t at = global_index();
  if (at >= plan.segments * plan.count) return;
  const int64_t segment = at / plan.count, cells = ranked.side * ranked.side;
  int64_t cell = cells;
  if (ranked.states[at] == kUndecided) cell = grid_of(ranked, segment).cell(load_row(ranked.boxes, at));
  keys[at] = static_cast<uint64_t>(segment * (cells + 1) + cell);
  values[at] = static_cast<int32_t>(at % plan.count);
}

// Boxes in the order in which nms_resolve_kernel looks through them: by cell, and in a cell by rank.
template <typename T>
struct Filed {
  const int32_t* ranks;  // [segments * count], or null: the order of rank
  T* boxes;              // [segments * count, 4]
  int64_t* groups;       // [segments * count], or null
  int64_t* starts;       // [segments * (side * side + 1) + 1]
};

template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_file_kernel(NmsPlan<T> plan, Ranked<T> ranked,
                    const uint64_t* keys,  // [segments * count], ascending
                    Filed<T> filed) {
  const int64_t at = global_index(), total = plan.segments * plan.count;
  if (at > total) return;
  const int64_t cells = plan.segments * (ranked.side * ranked.side + 1);
  const int64_t from = at == 0 ? 0 : static_cast<int64_t>(keys[at - 1]) + 1;
  const int64_t to = at == total ? cells : static_cast<int64_t>(keys[at]);
  for (int64_t cell = from; cell <= to; ++cell) filed.starts[cell] = at;
  if (at == total) return;
  const int64_t from_row = at / plan.count * plan.count + filed.ranks[at];
  store_row(filed.boxes, at, load_row(ranked.boxes, from_row));
  if (ranked.groups) filed.groups[at] = ranked.groups[from_row];
}

template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_resolve_kernel(NmsPlan<T> plan, Ranked<T> ranked, Filed<T> filed) {
  __shared__ unsigned long long turn;
  if (threadIdx.x == 0) turn = atomicAdd(ranked.next, 1ull);
  __syncthreads();
  // All segments advance together, each by rank.
  const int64_t segment = static_cast<int64_t>(turn) % plan.segments;
  const int64_t rank = static_cast<int64_t>(turn) / plan.segments * (kSpreadThreads / kWarp) + warp_index();
  if (rank >= plan.count) return;
  const int64_t first = segment * plan.count, me = first + rank;
  uint8_t* states = ranked.states + first;
  if (load_relaxed(&states[rank]) != kUndecided) return;
  const Box<T> box = load_row(ranked.boxes, me);
  const T box_area = area(box);
  const int lane = lane_index();

  // Looks through rows begin..end-1 of the list; true where a kept box among them suppresses this one.
  const auto search = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kWarp) {
      const int64_t at = row + lane;
      int64_t other = plan.count;
      if (at < end) other = filed.ranks ? filed.ranks[at] : at - first;
      bool hit = other < rank;
      if (ranked.groups) hit = hit && filed.groups[at] == ranked.groups[me];
      hit = hit && suppresses(load_row(filed.boxes, at), box, box_area, plan.threshold);
      while (true) {
        const uint8_t state = hit ? load_relaxed(&states[other]) : kDropped;
        if (__any_sync(kAllLanes, state == kKept)) return true;
        if (!__any_sync(kAllLanes, state == kUndecided)) break;
      }
    }
    return false;
  };

  bool dropped = false;
  if (ranked.side == 1) {
    dropped = search(first, me);
  } else {
    const BoxGrid grid = grid_of(ranked, segment);
    const CellRange cells = grid.around(box, box_area, nms_reach(plan.threshold));
    const int64_t own = grid.rows.cell(center_y(box));
    const int64_t* starts = filed.starts + segment * (ranked.side * ranked.side + 1);
    // From its own row outwards: what suppresses a box most often has its center close by.
    for (int64_t away = 0; !dropped && (own - away >= cells.top || own + away <= cells.bottom); ++away) {
      for (const int64_t row : {own - away, own + away}) {
        if (dropped || row < cells.top || row > cells.bottom) continue;
        dropped = search(starts[row * ranked.side + cells.left], starts[row * ranked.side + cells.right + 1]);
        if (away == 0) break;
      }
    }
  }
  if (lane == 0) store_relaxed(&states[rank], dropped ? kDropped : kKept);
}

// Tells the writer what the states by rank say.
template <typename T, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_finish_kernel(NmsPlan<T> plan, Ranked<T> ranked, Writer writer) {
  __shared__ int sums[kNmsThreads / kWarp];
  const int64_t segment = blockIdx.x, first = segment * plan.count;
  const int64_t max_kept = min_of(plan.max_kept, plan.count);
  int64_t num_kept = 0;
  for (int64_t begin = 0; begin < plan.count; begin += kNmsThreads) {
    const int64_t rank = begin + threadIdx.x;
    const bool kept = rank < plan.count && ranked.states[first + rank] == kKept;
    int total;
    const int64_t place = num_kept + block_exclusive_sum(kept, sums, total);
    num_kept = min_of(num_kept + total, max_kept);
    if (rank >= plan.count) continue;
    const int64_t index = ranked.order[first + rank];
    if constexpr (Writer::kWritesRanks) writer.ranked(segment, rank, index);
    if (!kept || place >= max_kept) continue;
    ranked.index_is_kept[first + index] = 1;
    writer.kept(segment, place, index);
  }
  __syncthreads();
  if constexpr (Writer::kWritesOthers) {
    int64_t kept_before = 0;
    for (int64_t begin = 0; begin < plan.count; begin += kNmsThreads) {
      const int64_t index = begin + threadIdx.x;
      const bool kept = index < plan.count && ranked.index_is_kept[first + index];
      int total;
      const int64_t before = kept_before + block_exclusive_sum(kept, sums, total);
      kept_before += total;
      if (index < plan.count && !kept) writer.other(segment, num_kept + index - before, index);
    }
  }
  writer.done(segment, num_kept);
}

}  // namespace ssd_ops
