// Which boxes are kept, of segments that are spread over the GPU (greedy_spread.cuh).
//
// A block decides a tile of 32 boxes. For each, a warp looks for boxes of higher rank that overlap it, by
// rank or through the cells of the grid that matter. A kept one ends the search. An undecided one is
// remembered, and the warp looks on: a kept one further on spares the wait. The search goes on by a few rows
// in each sweep of the block, and in each the boxes remembered are asked again. The boxes of a tile are
// settled among themselves by one warp, so that chains of boxes cost no exchange between blocks but from tile
// to tile.
//
// Tiles are taken in the order of rank from a counter, so whatever a block waits for is running or done. The
// longest wait is one sweep for each tile before this one.
#pragma once

#include "nms/greedy_spread.cuh"

namespace ssd_ops {

// The tiles of all segments, and what is known of those decided.
struct Tiles {
  int64_t before;          // tiles of each segment that are decided already
  int64_t of_segment;      // others, at most
  const int32_t* in_head;  // [segments]: boxes that the heads keep, or null
  // These are 0 at first.
  unsigned long long* next;  // [1]: the tile to decide
  int32_t* kept;             // [segments, of_segment]: the boxes kept, once a tile is decided
};

constexpr int kRowsOfStep = 4;    // rows of 32 boxes that are loaded together
constexpr int kStepsOfSweep = 4;  // a longer search would keep the other boxes of the tile waiting

// The search for what suppresses one box. Its rivals, the boxes of higher rank than the tile, lie in spans of
// rows. Without a grid there is one span: all, by rank. In a grid they are rows of cells, from the box's own
// outwards, since what suppresses a box most often has its center close by.
template <typename T>
struct Search {
  Box<T> box;
  int64_t group;
  const int32_t* starts;                        // [side * side + 1]: of the cells of its bucket of groups
  int side, own_row, left, right, top, bottom;  // of the grid
  int span, row;                                // where it goes on; -1: with the span's first row
  int owed[kWarp];                              // places of undecided boxes that overlap it, or -1
};

// Shared memory of a block.
template <typename T>
struct ResolveTile {
  unsigned long long turn;
  Search<T> searches[kTile];
  unsigned overlap[kTile];  // a bit for each earlier box of the tile that would suppress this one
  // A bit for each box.
  unsigned undecided, kept;
  unsigned clear;    // no box before the tile suppresses it
  unsigned dropped;  // one does
  int sums[kNmsThreads / kWarp];
};

// All boxes of a segment that may be rivals.
template <typename T>
struct Rivals {
  int begin;              // the first place of the tile: all rivals have a lower one
  bool in_grid;           // boxes, groups and places are by cell
  const T* boxes;         // [count, 4]
  const int64_t* groups;  // [count], or null where there are no groups
  const int32_t* places;  // [count], in the grid
  const uint8_t* states;  // [count], by place

  __device__ int spans(const Search<T>& search) const {
    if (!in_grid) return 1;
    return 1 + 2 * max_of(search.own_row - search.top, search.bottom - search.own_row);
  }
  __device__ void span(const Search<T>& search, int number, int& first, int& past) const {
    first = 0;
    past = begin;
    if (!in_grid) return;
    const int away = (number + 1) / 2, row = number % 2 == 0 ? search.own_row - away : search.own_row + away;
    const bool is_there = row >= search.top && row <= search.bottom;
    first = is_there ? search.starts[row * search.side + search.left] : 0;
    past = is_there ? search.starts[row * search.side + search.right + 1] : 0;
  }
};

enum class Answer { kOpen, kClear, kSuppressed };

// Asks again for the boxes owed, and looks on by some rows. Called by a warp.
template <typename T>
__device__ Answer look_on(Search<T>& search, const Rivals<T>& rivals, OverlapLimit<T> limit) {
  const int lane = lane_index(), spans = rivals.spans(search);
  int owed = search.owed[lane];
  const uint8_t state = owed >= 0 ? load_relaxed(&rivals.states[owed]) : kDropped;
  if (__any_sync(kAllLanes, state == kKept)) return Answer::kSuppressed;
  if (state == kDropped) owed = -1;
  unsigned idle = __ballot_sync(kAllLanes, owed < 0);

  const Box<T> box = search.box;
  const T box_area = area(box);
  const int64_t group = search.group;
  int span = search.span, row = search.row;
  for (int steps = 0; steps < kStepsOfSweep && span < spans; ++steps) {
    int first, past;
    rivals.span(search, span, first, past);
    row = max_of(row, first);
    if (row >= past) {
      ++span;
      row = -1;
      continue;
    }
    bool hits[kRowsOfStep];
#pragma unroll
    for (int r = 0; r < kRowsOfStep; ++r) {
      const int at = row + r * kWarp + lane;
      hits[r] = at < past && (!rivals.groups || rivals.groups[at] == group) &&
                suppresses(load_row(rivals.boxes, at), box, box_area, limit);
    }
    bool has_room = true;
#pragma unroll
    for (int r = 0; r < kRowsOfStep; ++r) {
      if (!has_room) break;
      if (__any_sync(kAllLanes, hits[r])) {
        const int at = row + lane;
        const int other = !hits[r] ? -1 : rivals.in_grid ? rivals.places[at] : at;
        const bool counts = other >= 0 && other < rivals.begin;
        const uint8_t now = counts ? load_relaxed(&rivals.states[other]) : kDropped;
        if (__any_sync(kAllLanes, now == kKept)) return Answer::kSuppressed;
        unsigned open = __ballot_sync(kAllLanes, now == kUndecided);
        has_room = __popc(open) <= __popc(idle);  // or else this row waits until enough lanes are free
        if (!has_room) break;
        for (; open != 0; open &= open - 1, idle &= idle - 1) {
          const int undecided = __shfl_sync(kAllLanes, other, __ffs(static_cast<int>(open)) - 1);
          if (lane == __ffs(static_cast<int>(idle)) - 1) owed = undecided;
        }
      }
      row += kWarp;
    }
    if (!has_room) break;
  }
  search.owed[lane] = owed;
  __syncwarp();
  if (lane == 0) {
    search.span = span;
    search.row = row;
  }
  return span < spans || idle != kAllLanes ? Answer::kOpen : Answer::kClear;
}

// What can be said now of a tile's boxes, by one warp with a lane for each: a box is dropped where a kept one
// suppresses it, and kept where all that would suppress it are dropped. Returns the boxes that are kept now.
template <typename T>
__device__ __forceinline__ unsigned settle_tile(ResolveTile<T>& tile, uint8_t* states) {  // states: [kTile]
  const int lane = lane_index();
  const unsigned undecided = tile.undecided;
  const Settled settled = settle(undecided & ~tile.dropped, tile.clear, tile.overlap[lane]);
  const unsigned kept = settled.kept, dropped = undecided & ~(kept | settled.open);
  if ((kept >> lane & 1) != 0) store_relaxed(&states[lane], kKept);
  if ((dropped >> lane & 1) != 0) store_relaxed(&states[lane], kDropped);
  __syncwarp();
  if (lane == 0) {
    tile.kept |= kept;
    tile.undecided = undecided & ~(kept | dropped);
  }
  return kept;
}

// Begins the search for one box. Called by a warp.
template <typename T>
__device__ void begin_search(Search<T>& search, const Ranked<T>& ranked, const Rest<T>& rest,
                             const Filed<T>& filed, int64_t segment, int64_t at, bool looks, T threshold) {
  const int lane = lane_index();
  search.owed[lane] = -1;
  if (lane != 0) return;
  search.box = looks ? load_row(rest.boxes, at) : nowhere<T>();
  search.group = looks && rest.groups ? rest.groups[at] : 0;
  search.span = 0;
  search.row = -1;
  if (!looks || ranked.max_cells == 1) return;
  const BucketGrid buckets(ranked, segment);
  const CellRange cells = buckets.grid.around(search.box, area(search.box), nms_reach(threshold));
  search.starts = filed.starts + segment * (ranked.max_cells + 1);
  if (rest.groups) search.starts += buckets.first_cell(search.group);
  search.side = static_cast<int>(buckets.grid.rows.side);
  search.own_row = static_cast<int>(buckets.grid.rows.cell(center_y(search.box)));
  search.left = static_cast<int>(cells.left);
  search.right = static_cast<int>(cells.right);
  search.top = static_cast<int>(cells.top);
  search.bottom = static_cast<int>(cells.bottom);
}

// How many boxes the decided ones of the tiles 0..number-1 keep. Called by the block; a barrier stands
// within.
__device__ __forceinline__ int kept_so_far(const int32_t* tile_kept, int64_t number, int* warp_sums) {
  int kept = 0;
  for (int64_t t = threadIdx.x; t < number; t += blockDim.x) kept += load_relaxed(&tile_kept[t]);
  return block_sum(kept, warp_sums);
}

template <typename T>
__global__ void __launch_bounds__(kNmsThreads)
    nms_resolve_kernel(NmsPlan<T> plan, Ranked<T> ranked, Rest<T> rest, Filed<T> filed, Tiles tiles) {
  __shared__ ResolveTile<T> tile;
  if (threadIdx.x == 0) {
    tile.turn = atomicAdd(tiles.next, 1ull);
    tile.undecided = tile.kept = tile.clear = tile.dropped = 0;
  }
  __syncthreads();
  // All segments advance together, each by rank.
  const int64_t segment = static_cast<int64_t>(tile.turn) % plan.segments;
  const int64_t number = static_cast<int64_t>(tile.turn) / plan.segments;
  const int64_t first = segment * plan.count, begin = (tiles.before + number) * kTile;
  const int64_t count = rest.count(plan, segment);
  if (begin >= count) return;
  const int lane = lane_index(), warp = warp_index(), warps = static_cast<int>(blockDim.x) / kWarp;
  uint8_t* states = rest.states + first;
  int32_t* tile_kept = tiles.kept + segment * tiles.of_segment;
  int32_t* rank_kept = ranked.rank_kept + segment * ranked.parts;
  const bool may_stop = plan.max_kept < plan.count;
  const int64_t kept_before = tiles.in_head ? tiles.in_head[segment] : 0;
  for (int i = warp; i < kTile; i += warps) {
    const int64_t place = begin + i;
    const uint8_t state = place < count ? load_relaxed(&states[place]) : kDropped;
    begin_search(tile.searches[i], ranked, rest, filed, segment, first + place, state == kUndecided,
                 plan.limit.threshold);
    if (lane == 0 && state == kUndecided) atomicOr(&tile.undecided, 1u << i);
    if (lane == 0 && state == kKept) {
      atomicOr(&tile.kept, 1u << i);
      atomicAdd(&rank_kept[rest.rank(first, place) / kNmsThreads], 1);
    }
  }
  __syncthreads();
  unsigned undecided = tile.undecided;
  for (int i = warp; i < kTile; i += warps) {
    const Search<T>& mine = tile.searches[i];
    const Search<T>& other = tile.searches[lane];
    const bool hit = (undecided >> i & 1) != 0 && lane < i && other.group == mine.group &&
                     suppresses(other.box, mine.box, area(mine.box), plan.limit);
    const unsigned overlap = __ballot_sync(kAllLanes, hit);
    if (lane == 0) tile.overlap[i] = overlap;
  }

  Rivals<T> rivals = {};
  rivals.begin = static_cast<int>(begin);
  rivals.states = states;
  rivals.in_grid = ranked.max_cells > 1;
  rivals.boxes = (rivals.in_grid ? filed.boxes : rest.boxes) + 4 * first;
  if (rest.groups) rivals.groups = (rivals.in_grid ? filed.groups : rest.groups) + first;
  if (rivals.in_grid) rivals.places = filed.places + first;
  unsigned ended = 0;    // searches, as this warp knows
  unsigned settled = 0;  // what was known when the tile was settled last
  while (undecided != 0) {
    for (int i = warp; i < kTile; i += warps) {
      if ((undecided & ~ended & 1u << i) == 0) continue;
      const Answer answer = look_on(tile.searches[i], rivals, plan.limit);
      if (answer == Answer::kOpen) continue;
      ended |= 1u << i;
      if (lane == 0) atomicOr(answer == Answer::kClear ? &tile.clear : &tile.dropped, 1u << i);
    }
    const bool stops = may_stop && kept_before + kept_so_far(tile_kept, number, tile.sums) >= plan.max_kept;
    __syncthreads();
    if (warp == 0) {
      if (stops && lane == 0) tile.dropped = kAllLanes;
      __syncwarp();
      const unsigned known = tile.clear | tile.dropped;
      if (known != settled) {
        const unsigned kept = settle_tile(tile, states + begin);
        if ((kept >> lane & 1) != 0) {
          const int64_t rank = rest.rank(first, begin + lane);
          if (rest.ranks) ranked.states[first + rank] = kKept;
          atomicAdd(&rank_kept[rank / kNmsThreads], 1);
        }
      }
      settled = known;
    }
    __syncthreads();
    undecided = tile.undecided;
  }
  if (threadIdx.x == 0) store_relaxed(&tile_kept[number], __popc(tile.kept));
}

}  // namespace ssd_ops
