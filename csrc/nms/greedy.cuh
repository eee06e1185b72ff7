// Exact greedy NMS on the GPU, of many equally long segments (images) at once. No synchronisation with the host,
// memory linear in the boxes, and the kept boxes of the CPU, in its order.
//
// Two ways, by the number of segments (greedy_launch.cuh):
//
// nms_block_kernel: one block a segment, one launch. It sorts, then takes 32 candidates at a time against the
// boxes kept so far, newest first, a warp each; the 32 among themselves are settled by votes of one warp.
//
// The other way spreads a segment over the whole GPU: rank (sort by score), gather, file the boxes by their
// center in a grid (prune.h), then nms_resolve_kernel: a warp for each box looks through the cells that matter for
// boxes of higher rank that overlap it. A kept one ends it; an undecided one is waited for. Blocks take their
// boxes in the order of rank from a counter, so whatever a warp waits for is running or done. Chains of
// dependence are short (2 to 12 links for 1,000 to 100,000 boxes, see Blelloch et al., arXiv 1202.3205).
//
// A Source gives, for box i of a segment: `Score score(segment, i)`, `Box<T> box(segment, i)` and, where kGrouped,
// `int64_t group(segment, i)`: only boxes of one group suppress each other. A Writer gets every box once: `kept`
// with its place among the kept ones, `other` with a place after them; `done` with the number kept.
#pragma once

#include "common/block_sort.cuh"
#include "common/order.h"
#include "nms/prune.h"

namespace ssd_ops {

constexpr int kNmsThreads = 1024;
constexpr int kNmsTile = kNmsThreads / kWarp;  // candidates at a time: one a warp
constexpr int kSpreadThreads = 256;
constexpr uint32_t kDroppedKey = 0xffffffffu;  // of a NaN score; no number has it

// Upper half the score, highest first; lower half the index, so that equal scores keep their order.
__device__ __forceinline__ uint64_t rank_key(float score, int64_t index) {
  const uint32_t key = score == score ? descending_key(score) : kDroppedKey;
  return static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(index);
}

template <typename T>
__device__ __forceinline__ bool suppresses(Box<T> kept, Box<T> box, T box_area, T threshold, T quick) {
  const T inter = intersection(kept, box);
  if (!(inter > T(0))) return false;
  const T kept_area = area(kept);
  return inter >= quick * ((kept_area + box_area) - inter) && iou(inter, kept_area, box_area) > threshold;
}

template <typename T>
struct NmsPlan {
  int64_t segments, count;
  int64_t max_ranked;  // candidates of a segment: the first ones by rank
  int64_t max_kept;    // the search ends there
  T threshold;
};

template <typename T>
struct KeptList {
  T* boxes;         // [segments, count, 4]
  int64_t* groups;  // [segments, count], where the source has groups
};

inline int64_t nms_block_shared(int64_t count) { return count * 8 + (count + 31) / 32 * 8; }

template <typename T, typename Source, typename Writer>
__global__ void __launch_bounds__(kNmsThreads)
    nms_block_kernel(Source source, Writer writer, NmsPlan<T> plan, KeptList<T> list) {
  SSD_DYNAMIC_SHARED(shared);
  __shared__ Box<T> tile[kNmsTile];
  __shared__ int64_t tile_group[kNmsTile];
  __shared__ unsigned overlap[kNmsTile];
  __shared__ int alive[kNmsTile];
  __shared__ int sums[kNmsThreads / kWarp];
  __shared__ int num_kept, num_listed;
  const int count = static_cast<int>(plan.count), words = (count + 31) / 32;
  uint64_t* keys = reinterpret_cast<uint64_t*>(shared);
  unsigned* is_kept = reinterpret_cast<unsigned*>(keys + count);
  int* before = reinterpret_cast<int*>(is_kept + words);
  const int64_t segment = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), warp = warp_index();
  const T quick = quick_threshold(plan.threshold);
  T* listed = list.boxes + 4 * segment * plan.count;
  int64_t* listed_group = list.groups + segment * plan.count;

  for (int i = thread; i < count; i += kNmsThreads) keys[i] = rank_key(source.score(segment, i), i);
  for (int w = thread; w < words; w += kNmsThreads) is_kept[w] = 0;
  if (thread == 0) num_kept = num_listed = 0;
  __syncthreads();
  block_sort(keys, count);

  const int ranked = static_cast<int>(min_of(plan.max_ranked, plan.count));
  const int max_kept = static_cast<int>(min_of(plan.max_kept, plan.count));
  for (int base = 0; base < ranked && num_kept < max_kept; base += kNmsTile) {
    const int rank = base + warp;
    bool lives = rank < ranked && static_cast<uint32_t>(keys[rank] >> 32) != kDroppedKey;
    const int64_t index = lives ? static_cast<uint32_t>(keys[rank]) : 0;
    const Box<T> box = lives ? source.box(segment, index) : nowhere<T>();
    const T box_area = area(box);
    int64_t group = 0;
    if constexpr (Source::kGrouped) group = lives ? source.group(segment, index) : 0;
    if (lives && can_overlap(box, box_area)) {
      for (int k0 = num_listed; k0 > 0 && lives; k0 -= kWarp) {
        const int k = k0 - 1 - lane;
        bool hit = k >= 0;
        if constexpr (Source::kGrouped) hit = hit && listed_group[k] == group;
        hit = hit && suppresses(load_row(listed, k), box, box_area, plan.threshold, quick);
        lives = !__any_sync(kAllLanes, hit);
      }
    }
    if (lane == 0) {
      tile[warp] = box;
      tile_group[warp] = group;
      alive[warp] = lives;
    }
    __syncthreads();
    if (lives) {
      const bool hit = lane < warp && alive[lane] && tile_group[lane] == group &&
                       suppresses(tile[lane], box, box_area, plan.threshold, quick);
      const unsigned hits = __ballot_sync(kAllLanes, hit);
      if (lane == 0) overlap[warp] = hits;
    }
    __syncthreads();
    if (warp == 0) {
      // A lane is dropped once a lane that overlaps it is kept, and kept once all of those are dropped.
      bool undecided = alive[lane];
      const unsigned mine = undecided ? overlap[lane] : 0;
      unsigned kept = 0, open = __ballot_sync(kAllLanes, undecided);
      while (open != 0) {
        const bool keep = undecided && (mine & (kept | open)) == 0;
        undecided = undecided && !keep && (mine & kept) == 0;
        kept |= __ballot_sync(kAllLanes, keep);
        open = __ballot_sync(kAllLanes, undecided);
      }
      const int place = num_kept + __popc(kept & lanes_below(lane));
      const bool keep = (kept >> lane & 1) != 0 && place < max_kept;
      const bool lists = keep && can_overlap(tile[lane], area(tile[lane]));
      const unsigned kept_lanes = __ballot_sync(kAllLanes, keep), lists_lanes = __ballot_sync(kAllLanes, lists);
      if (keep) {
        const uint32_t kept_index = static_cast<uint32_t>(keys[base + lane]);
        writer.kept(segment, place, kept_index);
        atomicOr(&is_kept[kept_index / 32], 1u << (kept_index % 32));
      }
      if (lists) {
        const int at = num_listed + __popc(lists_lanes & lanes_below(lane));
        store_row(listed, at, tile[lane]);
        if constexpr (Source::kGrouped) listed_group[at] = tile_group[lane];
      }
      __syncwarp();
      if (lane == 0) {
        num_kept += __popc(kept_lanes);
        num_listed += __popc(lists_lanes);
      }
    }
    __syncthreads();
  }

  int kept_in_words = 0;
  for (int begin = 0; begin < words; begin += kNmsThreads) {
    const int w = begin + thread;
    int total;
    const int sum = block_exclusive_sum(w < words ? __popc(is_kept[w]) : 0, sums, total);
    if (w < words) before[w] = kept_in_words + sum;
    kept_in_words += total;
  }
  __syncthreads();
  for (int i = thread; i < count; i += kNmsThreads) {
    if (test_bit(is_kept, i)) continue;
    const int kept_before = before[i / 32] + __popc(is_kept[i / 32] & lanes_below(i % 32));
    writer.other(segment, num_kept + i - kept_before, i);
  }
  if (thread == 0) writer.done(segment, num_kept);
}

// Scores as sortable numbers; dropped ones go last. Scores of 32 bits leave room for the segment above them.
template <typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_keys_kernel(Source source, int64_t segments, int64_t count, uint64_t* keys, int32_t* values) {
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
__global__ void __launch_bounds__(kNmsThreads) nms_rank_kernel(Source source, int64_t count, int32_t* order) {
  SSD_DYNAMIC_SHARED(shared);
  uint64_t* keys = reinterpret_cast<uint64_t*>(shared);
  const int64_t segment = blockIdx.x;
  for (int64_t i = threadIdx.x; i < count; i += kNmsThreads)
    keys[i] = rank_key(source.score(segment, i), i);
  __syncthreads();
  block_sort(keys, static_cast<int>(count));
  for (int64_t i = threadIdx.x; i < count; i += kNmsThreads)
    order[segment * count + i] = static_cast<int32_t>(static_cast<uint32_t>(keys[i]));
}

constexpr uint8_t kUndecided = 0, kKept = 1, kDropped = 2;  // states of a box

// All boxes in rank order, and the grid over them. side 1: no grid, boxes are looked through by rank.
template <typename T>
struct Ranked {
  const int32_t* order;  // [segments, count]: index of a rank
  T* boxes;
  int64_t* groups;
  uint8_t* states;
  uint8_t* index_is_kept;
  uint64_t* bounds;  // [segments, 4], 0 at first: of centers left, top, right, bottom, as keys of which the greatest counts
  unsigned long long* next;  // block to start, 0 at first
  int64_t side;
};

__device__ __forceinline__ uint64_t ascending_key(double x) { return ~descending_key(x); }
__device__ __forceinline__ double of_descending_key(uint64_t key) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  return bit_cast<double>(key & kSign ? key : ~key & ~kSign);
}

template <typename T>
struct Grid {
  GridAxis columns, rows;

  __device__ Grid(const Ranked<T>& ranked, int64_t segment) {
    const uint64_t* b = ranked.bounds + 4 * segment;
    columns = grid_axis(of_descending_key(b[0]), of_descending_key(~b[2]), ranked.side);
    rows = grid_axis(of_descending_key(b[1]), of_descending_key(~b[3]), ranked.side);
  }
  __device__ int64_t cell(Box<T> box) const {
    return rows.cell(center_y(box)) * rows.side + columns.cell(center_x(box));
  }
};

// Boxes by rank, with what can be said of each alone. `blocks` for each segment.
template <typename T, typename Source>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_gather_kernel(Source source, NmsPlan<T> plan, Ranked<T> ranked, int64_t blocks) {
  const int64_t segment = blockIdx.x / blocks, block = blockIdx.x % blocks;
  uint64_t bounds[4] = {0, 0, 0, 0};
  for (int64_t rank = block * kSpreadThreads + threadIdx.x; rank < plan.count; rank += blocks * kSpreadThreads) {
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

// The cell of each box; decided boxes go to one cell past the grid, where nobody looks.
template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_cells_kernel(NmsPlan<T> plan, Ranked<T> ranked, uint64_t* keys, int32_t* values) {
  const int64_t at = global_index();
  if (at >= plan.segments * plan.count) return;
  const int64_t segment = at / plan.count, cells = ranked.side * ranked.side;
  int64_t cell = cells;
  if (ranked.states[at] == kUndecided) cell = Grid<T>(ranked, segment).cell(load_row(ranked.boxes, at));
  keys[at] = static_cast<uint64_t>(segment * (cells + 1) + cell);
  values[at] = static_cast<int32_t>(at % plan.count);
}

// Boxes in the order in which nms_resolve_kernel looks through them: by cell, and in a cell by rank.
template <typename T>
struct Filed {
  const int32_t* ranks;
  T* boxes;
  int64_t* groups;
  int64_t* starts;  // [segments * (side * side + 1) + 1]
};

template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    nms_file_kernel(NmsPlan<T> plan, Ranked<T> ranked, const uint64_t* keys, Filed<T> filed) {
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
  const T box_area = area(box), quick = quick_threshold(plan.threshold);
  const int lane = lane_index();

  // Looks through rows begin..end-1 of the list; true where a kept box among them suppresses this one.
  const auto search = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kWarp) {
      const int64_t at = row + lane;
      int64_t other = plan.count;
      if (at < end) other = filed.ranks ? filed.ranks[at] : at - first;
      bool hit = other < rank;
      if (ranked.groups) hit = hit && filed.groups[at] == ranked.groups[me];
      hit = hit && suppresses(load_row(filed.boxes, at), box, box_area, plan.threshold, quick);
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
    const Grid<T> grid(ranked, segment);
    const double reach = nms_reach(plan.threshold);
    const double rx = reach * (static_cast<double>(box.x2) - static_cast<double>(box.x1));
    const double ry = reach * (static_cast<double>(box.y2) - static_cast<double>(box.y1));
    const double cx = center_x(box), cy = center_y(box);
    const bool prune = can_be_pruned(box_area);
    const int64_t left = prune ? grid.columns.cell(cx - rx) : 0, own = grid.rows.cell(cy);
    const int64_t right = prune ? grid.columns.cell(cx + rx) : ranked.side - 1;
    const int64_t top = prune ? grid.rows.cell(cy - ry) : 0;
    const int64_t bottom = prune ? grid.rows.cell(cy + ry) : ranked.side - 1;
    const int64_t* starts = filed.starts + segment * (ranked.side * ranked.side + 1);
    // From its own row outwards: what suppresses a box most often has its center close by.
    for (int64_t away = 0; !dropped && (own - away >= top || own + away <= bottom); ++away) {
      for (const int64_t row : {own - away, own + away}) {
        if (dropped || row < top || row > bottom) continue;
        dropped = search(starts[row * ranked.side + left], starts[row * ranked.side + right + 1]);
        if (away == 0) break;
      }
    }
  }
  if (lane == 0) store_relaxed(&states[rank], dropped ? kDropped : kKept);
}

// From states by rank to what the writer is told.
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
    if (!kept || place >= max_kept) continue;
    const int64_t index = ranked.order[first + rank];
    ranked.index_is_kept[first + index] = 1;
    writer.kept(segment, place, index);
  }
  __syncthreads();
  int64_t kept_before = 0;
  for (int64_t begin = 0; begin < plan.count; begin += kNmsThreads) {
    const int64_t index = begin + threadIdx.x;
    const bool kept = index < plan.count && ranked.index_is_kept[first + index];
    int total;
    const int64_t before = kept_before + block_exclusive_sum(kept, sums, total);
    kept_before += total;
    if (index < plan.count && !kept) writer.other(segment, num_kept + index - before, index);
  }
  if (threadIdx.x == 0) writer.done(segment, num_kept);
}

}  // namespace ssd_ops
