// Chooses between the two ways of greedy.cuh, and launches.
#pragma once

#include "common/radix_sort.cu.h"
#include "nms/greedy_block.cuh"
#include "nms/greedy_spread.cuh"

namespace ssd_ops {

// From so many segments on, one block for each keeps the GPU busy enough to save the other launches.
constexpr int64_t kSegmentsForBlocks = 16;
constexpr int64_t kAlwaysOneBlock = 256;  // boxes: for so few, spreading them costs more than it saves
// Boxes: below, looking through all of higher rank is quicker than filing them in a grid.
#ifdef SSD_OPS_EMULATION
constexpr int64_t kGridFrom = 512;  // so that the tests' sets meet the grid
#else
constexpr int64_t kGridFrom = 8192;
#endif
constexpr int64_t kBoxesPerGridCell = 64;  // on average
constexpr int64_t kMaxGridSide = 256;

template <typename Score, typename Source>
const int32_t* launch_rank(Launcher& launcher, const Source& source, int64_t segments, int64_t count,
                           const SortBuffers& buffers) {
  constexpr bool kShortKeys = sizeof(Score) == 4;
  const int64_t shared = 8 * count;
  if (kShortKeys && shared <= launcher.shared_limit()) {
    if constexpr (kShortKeys)
      launcher.run_with_shared(&nms_rank_kernel<Source>, segments, kNmsThreads, shared, source, count,
                               buffers.sorted_values);
    return buffers.sorted_values;
  }
  launcher.run(&nms_keys_kernel<Source>, ceil_div(segments * count, kSpreadThreads), kSpreadThreads, source,
               segments, count, buffers.keys, buffers.values);
  if (kShortKeys) {
    radix_sort(launcher, buffers, 0, segments * count, 32 + bits_of(segments));
  } else {
    for (int64_t s = 0; s < segments; ++s) radix_sort(launcher, buffers, s * count, count, 64);
  }
  return buffers.sorted_values;
}

template <typename Score, typename T, typename Source, typename Writer>
void launch_spread_nms(Launcher& launcher, const Source& source, const Writer& writer,
                       const NmsPlan<T>& plan) {
  const int64_t total = plan.segments * plan.count;
  const SortBuffers ranks = sort_buffers(launcher, total);
  Ranked<T> ranked = {};
  ranked.order = launch_rank<Score>(launcher, source, plan.segments, plan.count, ranks);
  ranked.boxes = launcher.scratch<T>(4 * total);
  if (Source::kGrouped) ranked.groups = launcher.scratch<int64_t>(total);
  ranked.states = launcher.scratch<uint8_t>(2 * total);
  ranked.index_is_kept = ranked.states + total;
  ranked.side = 1;
  if (plan.count >= kGridFrom && static_cast<double>(plan.threshold) >= kMinPruned)
    while (ranked.side < kMaxGridSide && ranked.side * ranked.side * kBoxesPerGridCell < plan.count)
      ++ranked.side;
  // Bounds and the counter of blocks, which begin at 0.
  ranked.bounds = launcher.scratch<uint64_t>(4 * plan.segments + 1);
  ranked.next = reinterpret_cast<unsigned long long*>(ranked.bounds + 4 * plan.segments);
  launcher.check(
      cudaMemsetAsync(ranked.bounds, 0, static_cast<size_t>(4 * plan.segments + 1) * 8, launcher.stream()));
  const int64_t gather_blocks = std::min<int64_t>(ceil_div(plan.count, kSpreadThreads), 64);
  launcher.run(&nms_gather_kernel<T, Source>, plan.segments * gather_blocks, kSpreadThreads, source, plan,
               ranked, gather_blocks);
  Filed<T> filed = {};
  filed.boxes = ranked.boxes;
  filed.groups = ranked.groups;
  if (ranked.side > 1) {
    const SortBuffers cells = sort_buffers(launcher, total);
    const int64_t num_cells = plan.segments * (ranked.side * ranked.side + 1);
    launcher.run(&nms_cells_kernel<T>, ceil_div(total, kSpreadThreads), kSpreadThreads, plan, ranked,
                 cells.keys, cells.values);
    radix_sort(launcher, cells, 0, total, bits_of(num_cells));
    filed.ranks = cells.sorted_values;
    filed.boxes = launcher.scratch<T>(4 * total);
    if (Source::kGrouped) filed.groups = launcher.scratch<int64_t>(total);
    filed.starts = launcher.scratch<int64_t>(num_cells + 1);
    launcher.run(&nms_file_kernel<T>, ceil_div(total + 1, kSpreadThreads), kSpreadThreads, plan, ranked,
                 static_cast<const uint64_t*>(cells.sorted_keys), filed);
  }
  launcher.run(&nms_resolve_kernel<T>, plan.segments * ceil_div(plan.count, kSpreadThreads / kWarp),
               kSpreadThreads, plan, ranked, filed);
  launcher.run(&nms_finish_kernel<T, Writer>, plan.segments, kNmsThreads, plan, ranked, writer);
}

// Score is the type that source.score returns.
template <typename Score, typename T, typename Source, typename Writer>
void launch_greedy_nms(Launcher& launcher, const Source& source, const Writer& writer,
                       const NmsPlan<T>& plan) {
  if (plan.segments == 0) return;
  if (plan.segments * plan.count > std::numeric_limits<int32_t>::max())
    launcher.fail("boxes must be fewer than 2^31 in all on a GPU, got ", plan.segments * plan.count);
  if constexpr (sizeof(Score) == 4) {
    const int64_t shared = nms_block_shared(plan.count);
    if ((plan.segments >= kSegmentsForBlocks || plan.count <= kAlwaysOneBlock) &&
        shared <= launcher.shared_limit()) {
      KeptList<T> list = {};
      list.boxes = launcher.scratch<T>(4 * plan.segments * plan.count);
      if (Source::kGrouped) list.groups = launcher.scratch<int64_t>(plan.segments * plan.count);
      launcher.run_with_shared(&nms_block_kernel<T, Source, Writer>, plan.segments, kNmsThreads, shared,
                               source, writer, plan, list);
      return;
    }
  }
  launch_spread_nms<Score>(launcher, source, writer, plan);
}

}  // namespace ssd_ops
