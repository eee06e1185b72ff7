// Chooses between the two ways of greedy.cuh, and launches.
#pragma once

#include "common/radix_sort.cu.h"
#include "nms/greedy_block.cuh"
#include "nms/greedy_head.cuh"
#include "nms/greedy_resolve.cuh"
#include "nms/greedy_spread.cuh"

namespace ssd_ops {

// From so many segments on, one block for each keeps the GPU busy enough to save the other launches.
constexpr int64_t kSegmentsForBlocks = 16;
constexpr int64_t kAlwaysOneBlock = 256;  // boxes: for so few, spreading them costs more than it saves
constexpr int64_t kMostSpread = 32768;    // boxes in all: for more, the GPU is busy with larger parts too
constexpr int64_t kMostCounted = 24576;   // boxes: for more, a radix sort is quicker than counting
// Boxes of a segment from which it has a head; of few segments, so many at most that what one head leaves is
// worth another; and from which the rest is filed in a grid: less is looked through by rank.
#ifdef SSD_OPS_EMULATION
constexpr int64_t kHeadFrom = 300, kMostClosed = 700, kGridFrom = 512;
constexpr int64_t kFewTiles = 4;  // so that the tests' sets meet all ways
#else
constexpr int64_t kHeadFrom = 2048, kMostClosed = 8192, kGridFrom = 4096;
constexpr int64_t kFewTiles = 320;  // two or three for each multiprocessor
#endif
static_assert(kHead < kLargeHead && kLargeHead < kHeadFrom && kHeadFrom <= kGridFrom);
constexpr int64_t kSweptHeads = 3;         // of each of many segments; few have one
constexpr int64_t kBoxesPerGridCell = 64;  // on average
constexpr int64_t kMaxGridCells = 65536;

// Fills what `ranked` holds by rank.
template <typename Score, typename T, typename Source>
void launch_ranking(Launcher& launcher, const Source& source, const NmsPlan<T>& plan,
                    const Ranked<T>& ranked) {
  using Key = typename FloatTraits<Score>::Bits;
  const int64_t segments = plan.segments, count = plan.count, total = segments * count;
  if (count <= kMostCompared && total <= kMostSpread) {
    const int64_t blocks = ceil_div(count, kTile);
    launcher.run(&nms_count_kernel<T, Score, Source>, segments * blocks, kNmsThreads, source, plan, ranked,
                 blocks);
    return;
  }
  const int64_t chunks = ceil_div(count, kChunk), shared = chunks * kChunk * sizeof(Key);
  if (count <= kMostCounted && shared <= launcher.shared_limit()) {
    Key* keys = launcher.scratch<Key>(total);
    int32_t* indices = launcher.scratch<int32_t>(total);
    const int of_block = total > kMostSpread ? kMostRankedByBlock : kRankedByBlock;
    const int64_t blocks = ceil_div(count, of_block);
    launcher.run(&nms_chunks_kernel<Score, Source>, segments * chunks, kChunk, source, count, chunks, keys,
                 indices);
    launcher.run_with_shared(&nms_rank_kernel<T, Key, Source>, segments * blocks, kNmsThreads, shared, source,
                             plan, ranked, of_block, blocks, static_cast<const Key*>(keys),
                             static_cast<const int32_t*>(indices));
    return;
  }
  const SortBuffers buffers = sort_buffers(launcher, total);
  launcher.run(&nms_keys_kernel<Source>, ceil_div(total, kSpreadThreads), kSpreadThreads, source, segments,
               count, buffers.keys, buffers.values);
  if (sizeof(Score) == 4) {
    radix_sort(launcher, buffers, 0, total, 32 + bits_of(segments));
  } else {
    for (int64_t s = 0; s < segments; ++s) radix_sort(launcher, buffers, s * count, count, 64);
  }
  const int64_t blocks = std::min<int64_t>(ceil_div(count, kSpreadThreads), 64);
  launcher.run(&nms_gather_kernel<T, Source>, segments * blocks, kSpreadThreads, source, plan, ranked, blocks,
               static_cast<const int32_t*>(buffers.sorted_values));
}

// Memory for the boxes that a head leaves.
template <bool kGrouped, typename T>
Rest<T> new_rest(Launcher& launcher, const NmsPlan<T>& plan) {
  const int64_t total = plan.segments * plan.count;
  Rest<T> rest = {};
  rest.counts = launcher.scratch<int32_t>(plan.segments);
  rest.ranks = launcher.scratch<int32_t>(total);
  rest.boxes = launcher.scratch<T>(4 * total);
  if (kGrouped) rest.groups = launcher.scratch<int64_t>(total);
  rest.states = launcher.scratch<uint8_t>(total);
  return rest;
}

// The heads of a segment, one after the other.
struct HeadPlan {
  int size;       // boxes of a head
  int64_t swept;  // how many heads all boxes after them are compared with
  bool closes;    // whether the boxes that are left then have a head too

  int64_t boxes() const { return (swept + (closes ? 1 : 0)) * size; }
};

template <typename T>
HeadPlan plan_heads(const NmsPlan<T>& plan) {
  const bool few = plan.segments < kSegmentsForBlocks;
  if (few && plan.count <= kLargeHead)
    return {static_cast<int>(ceil_div(plan.count, kTile) * kTile), 0, true};
  if (plan.count < kHeadFrom) return {};
  const int size = few ? kLargeHead : kHead;
  if (few) return {size, 1, plan.count <= kMostClosed};
  return {size, std::min(kSweptHeads, (plan.count - 1) / size), true};
}

template <typename T>
Heads<T> new_overlaps(Launcher& launcher, int64_t segments, int size) {
  Heads<T> heads = {};
  heads.size = size;
  heads.overlaps = launcher.scratch<unsigned>(segments * (size / kTile) * size);
  return heads;
}

// Memory for what a head decides.
template <bool kGrouped, typename T>
Heads<T> new_heads(Launcher& launcher, int64_t segments, int size) {
  Heads<T> heads = new_overlaps<T>(launcher, segments, size);
  heads.boxes = launcher.scratch<T>(4 * segments * size);
  if (kGrouped) heads.groups = launcher.scratch<int64_t>(segments * size);
  heads.counts = launcher.scratch<int32_t>(segments);
  heads.kept = launcher.scratch<int32_t>(segments);
  return heads;
}

template <bool kGrouped, typename T>
void launch_overlaps(Launcher& launcher, const NmsPlan<T>& plan, const Rest<T>& rest, const Heads<T>& heads,
                     const MarginTest<T>& test) {
  const int blocks = static_cast<int>(ceil_div(overlap_tasks(heads.size), kOverlapThreads / kWarp));
  launcher.run(&nms_overlaps_kernel<T, kGrouped>, plan.segments * blocks, kOverlapThreads, plan, rest, heads,
               blocks, test);
}

template <bool kGrouped, typename T>
void launch_head(Launcher& launcher, const NmsPlan<T>& plan, const Ranked<T>& ranked, const Rest<T>& rest,
                 const Heads<T>& heads, const MarginTest<T>& test, const HeadExtra<T>& extra) {
  launch_overlaps<kGrouped>(launcher, plan, rest, heads, test);
  const bool is_more = extra.task != HeadTask::kNone;
  launcher.run(&nms_head_kernel<T, kGrouped>, is_more ? 2 * plan.segments : plan.segments,
               is_more ? kNmsThreads : heads.size, plan, ranked, rest, heads, extra);
}

// Decides heads, one after the other. Returns the boxes that they do not drop, which are in `filed` by cell of
// the grid where there is one.
template <bool kGrouped, typename T>
Rest<T> launch_heads(Launcher& launcher, const NmsPlan<T>& plan, Ranked<T>& ranked, Rest<T> rest,
                     Filed<T>& filed, Tiles& tiles, const HeadPlan& head) {
  const int64_t segments = plan.segments, total = segments * plan.count, cells = segments * ranked.max_cells;
  const int64_t most_swept = ceil_div(plan.count - head.size, kSwept);
  const MarginTest<T> test(plan.limit.threshold);
  const Heads<T> heads = new_heads<kGrouped, T>(launcher, segments, head.size);
  int32_t* undecided = launcher.scratch<int32_t>(segments * most_swept);
  Rest<T> left[2] = {new_rest<kGrouped>(launcher, plan), {}};
  if (head.swept > 1) left[1] = new_rest<kGrouped>(launcher, plan);
  if (ranked.max_cells > 1) {
    ranked.bounds = launcher.scratch<double>(4 * segments);
    filed.cells = launcher.scratch<int32_t>(3 * total);
    filed.slots = filed.cells + total;
    filed.places = filed.slots + total;
    filed.starts = launcher.scratch<int32_t>(cells + segments);
    filed.boxes = launcher.scratch<T>(4 * total);
    if (kGrouped) filed.groups = launcher.scratch<int64_t>(total);
  }
  for (int64_t i = 0; i < head.swept; ++i) {
    const bool is_last = i == head.swept - 1;
    const int64_t after = plan.count - (i + 1) * head.size;  // boxes, at most
    const int64_t sweeps = ceil_div(after, kSwept), blocks = ceil_div(after, kRestBoxes);
    launch_head<kGrouped>(launcher, plan, ranked, rest, heads, test,
                          {is_last && ranked.max_cells > 1 ? HeadTask::kBounds : HeadTask::kNone, {}});
    launcher.run(&nms_sweep_kernel<T, kGrouped>, segments * sweeps, kSweepThreads, plan, ranked, rest, heads,
                 sweeps, test, undecided);
    launcher.run(&nms_rest_kernel<T>, segments * blocks, kSpreadThreads, plan, ranked, rest, left[i % 2],
                 is_last ? filed : Filed<T>{}, head.size, blocks, sweeps,
                 static_cast<const int32_t*>(undecided));
    rest = left[i % 2];
  }
  const bool has_grid = ranked.max_cells > 1;
  if (head.closes)
    launch_head<kGrouped>(launcher, plan, ranked, rest, heads, test,
                          {has_grid ? HeadTask::kStarts : HeadTask::kNone, filed});
  tiles.in_head = heads.kept;
  if (!has_grid) return rest;
  if (!head.closes) launcher.run(&nms_starts_kernel<T>, segments, kNmsThreads, ranked, filed);
  launcher.run(&nms_file_kernel<T>, ceil_div(total, kSpreadThreads), kSpreadThreads, plan, ranked, rest,
               filed);
  return rest;
}

// Memory for what is known of each rank.
template <bool kGrouped, typename T>
Ranked<T> new_ranked(Launcher& launcher, int64_t total) {
  Ranked<T> ranked = {};
  ranked.max_cells = 1;
  ranked.order = launcher.scratch<int32_t>(total);
  ranked.boxes = launcher.scratch<T>(4 * total);
  if (kGrouped) ranked.groups = launcher.scratch<int64_t>(total);
  ranked.states = launcher.scratch<uint8_t>(total);
  return ranked;
}

template <typename T>
Rest<T> all_of(const Ranked<T>& ranked) {
  Rest<T> rest = {};
  rest.boxes = ranked.boxes;
  rest.groups = ranked.groups;
  rest.states = ranked.states;
  return rest;
}

// Where there are few tiles, each has more warps.
inline int resolve_threads(int64_t num_tiles) {
  if (num_tiles <= kFewTiles) return kNmsThreads;
  return num_tiles <= 8 * kFewTiles ? kNmsThreads / 2 : kNmsThreads / 4;
}

template <typename Score, typename T, typename Source, typename Writer>
void launch_only_head(Launcher& launcher, const Source& source, const Writer& writer, const NmsPlan<T>& plan,
                      int size) {
  constexpr bool kGrouped = Source::kGrouped;
  const Ranked<T> ranked = new_ranked<kGrouped, T>(launcher, plan.segments * plan.count);
  const Heads<T> heads = new_overlaps<T>(launcher, plan.segments, size);
  launch_ranking<Score>(launcher, source, plan, ranked);
  launch_overlaps<kGrouped>(launcher, plan, all_of(ranked), heads, MarginTest<T>(plan.limit.threshold));
  launcher.run(&nms_only_head_kernel<T, Writer>, plan.segments, size, plan, ranked, heads, writer);
}

template <typename Score, typename T, typename Source, typename Writer>
void launch_spread_nms(Launcher& launcher, const Source& source, const Writer& writer, const NmsPlan<T>& plan,
                       const HeadPlan& head) {
  constexpr bool kGrouped = Source::kGrouped;
  const int64_t segments = plan.segments;
  Ranked<T> ranked = new_ranked<kGrouped, T>(launcher, segments * plan.count);
  if (Writer::kWritesOthers) ranked.index_is_kept = launcher.scratch<uint8_t>(segments * plan.count);
  Tiles tiles = {};
  if (head.closes) tiles.before = head.size / kTile;
  tiles.of_segment = std::max<int64_t>(0, ceil_div(plan.count - head.boxes(), kTile));
  // IoS has no grid: boxes of all sizes would have to be looked for, and all by rank are quick for a GPU.
  if (plan.count >= kGridFrom && tiles.of_segment > 0 && plan.limit.metric == Metric::kIou &&
      static_cast<double>(plan.limit.threshold) >= kMinPruned)
    ranked.max_cells = std::min(kMaxGridCells, ceil_div(plan.count, kBoxesPerGridCell));
  for (int halvings = 0; halvings < 7; ++halvings)
    ranked.sides[halvings] =
        static_cast<int32_t>(std::sqrt(static_cast<double>(ranked.max_cells >> halvings)));
  ranked.parts = std::max<int64_t>(1, ceil_div(plan.count, kNmsThreads));
  const int64_t cells = ranked.max_cells > 1 ? segments * ranked.max_cells : 0;
  // What begins at 0 lies together.
  const int64_t words = 2 * (segments + 1) + segments * (tiles.of_segment + 2 * ranked.parts) + cells;
  int32_t* zeros = launcher.scratch<int32_t>(words);
  launcher.zero(zeros, 4 * words);
  ranked.groups_seen = reinterpret_cast<unsigned long long*>(zeros);
  tiles.next = ranked.groups_seen + segments;
  tiles.kept = reinterpret_cast<int32_t*>(tiles.next + 1);
  ranked.rank_kept = tiles.kept + segments * tiles.of_segment;
  ranked.index_kept = ranked.rank_kept + segments * ranked.parts;
  if (plan.count > 0) {
    launch_ranking<Score>(launcher, source, plan, ranked);
    Rest<T> rest = all_of(ranked);
    Filed<T> filed = {};
    filed.counts = ranked.index_kept + segments * ranked.parts;
    if (head.size > 0) rest = launch_heads<kGrouped>(launcher, plan, ranked, rest, filed, tiles, head);
    const int64_t num_tiles = segments * tiles.of_segment;
    if (num_tiles > 0)
      launcher.run(&nms_resolve_kernel<T>, num_tiles, resolve_threads(num_tiles), plan, ranked, rest, filed,
                   tiles);
  }
  launcher.run(&nms_finish_kernel<T, Writer>, segments * ranked.parts, kNmsThreads, plan, ranked, writer);
  if constexpr (Writer::kWritesOthers)
    launcher.run(&nms_others_kernel<T, Writer>, segments * ranked.parts, kNmsThreads, plan, ranked, writer);
}

// Within Launcher::with_scratch. Score is the type that source.score returns.
template <typename Score, typename T, typename Source, typename Writer>
void launch_greedy_nms(Launcher& launcher, const Source& source, const Writer& writer,
                       const NmsPlan<T>& plan) {
  if (plan.segments == 0) return;
  if (plan.segments * plan.count > std::numeric_limits<int32_t>::max())
    launcher.fail("boxes must be fewer than 2^31 in all on a GPU, got ", plan.segments * plan.count);
  if constexpr (sizeof(Score) == 4) {
    const int64_t shared = BlockRoom<T, Source::kGrouped>::bytes(plan.count);
    if (((plan.segments >= kSegmentsForBlocks && plan.count < kHeadFrom) || plan.count <= kAlwaysOneBlock) &&
        shared <= launcher.shared_limit()) {
      launcher.run_with_shared(&nms_block_kernel<T, Source, Writer>, plan.segments, kNmsThreads, shared,
                               source, writer, plan);
      return;
    }
  }
  const HeadPlan head = plan_heads(plan);
  if (plan.count > 0 && plan.count <= head.size)
    launch_only_head<Score>(launcher, source, writer, plan, head.size);
  else
    launch_spread_nms<Score>(launcher, source, writer, plan, head);
}

}  // namespace ssd_ops
