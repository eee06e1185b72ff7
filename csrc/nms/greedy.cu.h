// Chooses between the two ways of greedy.cuh, and launches.
#pragma once

#include "common/radix_sort.cu.h"
#include "nms/greedy_block.cuh"
#include "nms/greedy_resolve.cuh"
#include "nms/greedy_spread.cuh"

namespace ssd_ops {

// From so many segments on, one block for each keeps the GPU busy enough to save the other launches.
constexpr int64_t kSegmentsForBlocks = 16;
constexpr int64_t kAlwaysOneBlock = 256;  // boxes: for so few, spreading them costs more than it saves
constexpr int64_t kMostCounted = 24576;   // boxes: for more, a radix sort is quicker than counting
// Boxes: below, looking through all of higher rank is quicker than filing them in a grid.
#ifdef SSD_OPS_EMULATION
constexpr int64_t kGridFrom = 512;  // so that the tests' sets meet the grid
#else
constexpr int64_t kGridFrom = 4096;
#endif
constexpr int64_t kFewTiles = 132;         // about one for each multiprocessor
constexpr int64_t kBoxesPerGridCell = 64;  // on average
constexpr int64_t kMaxGridCells = 65536;

// Fills what `ranked` holds by rank.
template <typename Score, typename T, typename Source>
void launch_ranking(Launcher& launcher, const Source& source, const NmsPlan<T>& plan,
                    const Ranked<T>& ranked) {
  using Key = typename FloatTraits<Score>::Bits;
  const int64_t segments = plan.segments, count = plan.count, total = segments * count;
  const int64_t chunks = ceil_div(count, kChunk), shared = chunks * kChunk * sizeof(Key);
  if (count <= kMostCounted && shared <= launcher.shared_limit()) {
    Key* keys = launcher.scratch<Key>(total);
    int32_t* indices = launcher.scratch<int32_t>(total);
    const int64_t blocks = ceil_div(count, kRankedByBlock);
    launcher.run(&nms_chunks_kernel<Score, Source>, segments * chunks, kNmsThreads, source, count, chunks,
                 keys, indices);
    launcher.run_with_shared(&nms_rank_kernel<T, Key, Source>, segments * blocks, kNmsThreads, shared, source,
                             plan, ranked, blocks, static_cast<const Key*>(keys),
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

template <typename Score, typename T, typename Source, typename Writer>
void launch_spread_nms(Launcher& launcher, const Source& source, const Writer& writer,
                       const NmsPlan<T>& plan) {
  const int64_t total = plan.segments * plan.count;
  Ranked<T> ranked = {};
  ranked.max_cells = 1;
  if (plan.count >= kGridFrom && static_cast<double>(plan.threshold) >= kMinPruned)
    ranked.max_cells = std::min(kMaxGridCells, ceil_div(plan.count, kBoxesPerGridCell));
  for (int halvings = 0; halvings < 7; ++halvings)
    ranked.sides[halvings] =
        static_cast<int32_t>(std::sqrt(static_cast<double>(ranked.max_cells >> halvings)));
  ranked.tiles = ceil_div(plan.count, kTile);
  ranked.parts = std::max<int64_t>(1, ceil_div(plan.count, kNmsThreads));
  const int64_t cells = ranked.max_cells > 1 ? plan.segments * ranked.max_cells : 0;
  // What begins at 0 lies together.
  const int64_t words = 2 * (5 * plan.segments + 1) + plan.segments * (ranked.tiles + ranked.parts) + cells;
  int32_t* zeros = launcher.scratch<int32_t>(words);
  launcher.check(cudaMemsetAsync(zeros, 0, static_cast<size_t>(words) * 4, launcher.stream()));
  ranked.bounds = reinterpret_cast<uint64_t*>(zeros);
  ranked.groups_seen = reinterpret_cast<unsigned long long*>(ranked.bounds + 4 * plan.segments);
  ranked.next = ranked.groups_seen + plan.segments;
  ranked.tile_kept = reinterpret_cast<int32_t*>(ranked.next + 1);
  ranked.part_kept = ranked.tile_kept + plan.segments * ranked.tiles;
  if (total > 0) {
    ranked.order = launcher.scratch<int32_t>(total);
    ranked.boxes = launcher.scratch<T>(4 * total);
    if (Source::kGrouped) ranked.groups = launcher.scratch<int64_t>(total);
    ranked.states = launcher.scratch<uint8_t>(2 * total);
    ranked.index_is_kept = ranked.states + total;
    launch_ranking<Score>(launcher, source, plan, ranked);
    Filed<T> filed = {};
    if (ranked.max_cells > 1) {
      filed.cells = launcher.scratch<int32_t>(3 * total);
      filed.slots = filed.cells + total;
      filed.ranks = filed.slots + total;
      filed.counts = ranked.part_kept + plan.segments * ranked.parts;
      filed.starts = launcher.scratch<int32_t>(cells + plan.segments);
      filed.boxes = launcher.scratch<T>(4 * total);
      if (Source::kGrouped) filed.groups = launcher.scratch<int64_t>(total);
      const int64_t blocks = ceil_div(total, kSpreadThreads);
      launcher.run(&nms_cells_kernel<T>, blocks, kSpreadThreads, plan, ranked, filed);
      launcher.run(&nms_starts_kernel<T>, plan.segments, kNmsThreads, ranked, filed);
      launcher.run(&nms_file_kernel<T>, blocks, kSpreadThreads, plan, ranked, filed);
    }
    // Where there are few tiles, each has more warps.
    const int64_t tiles = plan.segments * ranked.tiles;
    launcher.run(&nms_resolve_kernel<T>, tiles, tiles <= kFewTiles ? kNmsThreads : kNmsThreads / 2, plan,
                 ranked, filed);
  }
  launcher.run(&nms_finish_kernel<T, Writer>, plan.segments * ranked.parts, kNmsThreads, plan, ranked,
               writer);
  if constexpr (Writer::kWritesOthers)
    launcher.run(&nms_others_kernel<T, Writer>, plan.segments * ranked.parts, kNmsThreads, plan, ranked,
                 writer);
}

// Score is the type that source.score returns.
template <typename Score, typename T, typename Source, typename Writer>
void launch_greedy_nms(Launcher& launcher, const Source& source, const Writer& writer,
                       const NmsPlan<T>& plan) {
  if (plan.segments == 0) return;
  if (plan.segments * plan.count > std::numeric_limits<int32_t>::max())
    launcher.fail("boxes must be fewer than 2^31 in all on a GPU, got ", plan.segments * plan.count);
  if constexpr (sizeof(Score) == 4) {
    const int64_t shared = BlockRoom<T, Source::kGrouped>::bytes(plan.count);
    if ((plan.segments >= kSegmentsForBlocks || plan.count <= kAlwaysOneBlock) &&
        shared <= launcher.shared_limit()) {
      launcher.run_with_shared(&nms_block_kernel<T, Source, Writer>, plan.segments, kNmsThreads, shared,
                               source, writer, plan);
      return;
    }
  }
  launch_spread_nms<Score>(launcher, source, writer, plan);
}

}  // namespace ssd_ops
