// The detections of an image from its best candidates on, a portion at a time, until max_detections are kept:
// later candidates change nothing, so most are never written, sorted, decoded or compared. The steps:
//   best_scores_kernel (class_scores.cuh)   the best score of each box, and how many there are in each bin
//   best_class_kernel (class_scores.cuh)    the class of that score, where only the best class counts
//   level_topk_kernel (level_topk.cuh)      where the candidates of a level end, where there are levels
//   list_kernel                             the candidates that come first: a list for each image
//   portions_kernel                         one block for each image: sort and NMS, portion by portion
// Where the list ends too early, or is too long for its room, portions_kernel looks through all scores again.
// That is slower, and rare: scores have to be equal, or boxes to overlap, by the thousand.
#pragma once

#include "common/block_sort.cuh"
#include "detection/class_scores.cuh"
#include "detection/detections.h"
#include "nms/greedy_tiles.cuh"

namespace ssd_ops {

// Where the candidates of an image are found.
template <typename T>
struct Shortlist {
  BestScores<T> best;
  Candidate<T>* list;  // [B, room], in any order
  int32_t* counts;     // [B]: candidates for the list; more than the room: it is of no use. 0 at first
  int32_t* seen;       // [B, C]: candidates of a class so far, or null without topk. 0 at first
  int room, wanted;    // wanted: boxes with a candidate on the list, about
};

constexpr int kListThreads = 256;
constexpr int kListRows = 128;

// Sums the bins of an image up to each one, for `each(bin, before, upto)`: the boxes before the bin, and with
// it.
template <typename Each>
__device__ void sum_bins(const int32_t* bins, int* warp_sums, const Each& each) {
  constexpr int kMostOfThread = kBins / kListThreads;
  const int of_thread = kBins / static_cast<int>(blockDim.x),
            first = static_cast<int>(threadIdx.x) * of_thread;
  int own[kMostOfThread], sum = 0, total;
#pragma unroll
  for (int b = 0; b < kMostOfThread; ++b) {
    own[b] = b < of_thread ? bins[first + b] : 0;
    sum += own[b];
  }
  int before = block_exclusive_sum(sum, warp_sums, total);
#pragma unroll
  for (int b = 0; b < kMostOfThread; ++b) {
    if (b < of_thread) each(first + b, before, before + own[b]);
    before += own[b];
  }
}

// The last bin on the list: as many as have the wanted number of boxes, or the first that has any.
__device__ __forceinline__ bool is_on_list(int before, int upto, int wanted) {
  return upto <= wanted || before == 0;
}

// Lists the candidates of the bins up to the last one. `blocks` for each image.
template <typename T, typename Scores>
__global__ void __launch_bounds__(kListThreads)
    list_kernel(Scores scores, Shortlist<T> shortlist, T threshold, int64_t blocks) {
  __shared__ int sums[kListThreads / kWarp];
  __shared__ int last_bin, num_rows;
  __shared__ int rows[kListRows];
  const int64_t image = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kListRows;
  if (threadIdx.x == 0) last_bin = num_rows = 0;
  __syncthreads();
  sum_bins(shortlist.best.bins + image * kBins, sums, [&](int bin, int before, int upto) {
    if (is_on_list(before, upto, shortlist.wanted)) atomicMax(&last_bin, bin);
  });
  __syncthreads();
  const auto end = ScoreBins<T>::begin(last_bin + 1);
  if (threadIdx.x < kListRows && first + threadIdx.x < scores.num_boxes) {
    const int own = static_cast<int>(first + threadIdx.x);
    const T most = ceiling_of(shortlist.best.best[image * scores.num_boxes + own]);
    if (most > threshold && descending_key(most) < end) rows[atomicAdd(&num_rows, 1)] = own;
  }
  __syncthreads();
  for (int r = warp_index(); r < num_rows; r += kListThreads / kWarp) {
    const int64_t row = image * scores.num_boxes + rows[r];
    const Softmax<T> softmax = Scores::kSoftmax ? shortlist.best.softmax[row] : Softmax<T>{};
    const ClassRange classes = scores.classes(row);
    const Candidate<T> end_of_row = scores.end_of(row, {end, 0});
    for (int base = classes.begin; base < classes.end; base += kWarp) {
      const int category = base + lane_index();
      const T score =
          category < classes.end ? scores.score(row, category, softmax) : std::numeric_limits<T>::quiet_NaN();
      const Candidate<T> found{descending_key(score),
                               static_cast<uint32_t>(category * scores.num_boxes + rows[r])};
      const bool listed = score > threshold && found < end_of_row;
      const unsigned lanes = __ballot_sync(kAllLanes, listed);
      if (lanes == 0) continue;
      int at = 0;
      if (lane_index() == 0) at = atomicAdd(&shortlist.counts[image], __popc(lanes));
      at = __shfl_sync(kAllLanes, at, 0) + __popc(lanes & lanes_below(lane_index()));
      if (listed && at < shortlist.room) shortlist.list[image * shortlist.room + at] = found;
    }
  }
}

// What portions_kernel is told.
template <typename T>
struct PortionsPlan {
  T score_threshold;
  OverlapLimit<T> limit;
  int64_t topk;  // -1: all
  int max_detections;
  int portion;  // boxes with a candidate in a portion, about
  int room;     // candidates of a portion at most
};

// Shared memory of portions_kernel, beside what it declares.
template <typename T>
struct PortionsRoom {
  T *boxes, *kept_boxes;     // [room, 4], [max_detections, 4]
  Candidate<T>* candidates;  // [room]
  int32_t *classes, *kept_classes;
  int *boxes_upto, *bins;  // [kBins]: of the image's bins; of a range that is narrowed
  unsigned* left_out;      // [room] bits

  static int64_t bytes(int64_t room, int64_t max_detections) {
    return room * static_cast<int64_t>(4 * sizeof(T) + sizeof(Candidate<T>) + 4) + room / 8 +
           max_detections * static_cast<int64_t>(4 * sizeof(T) + 4) + 2 * kBins * 4;
  }
  __device__ PortionsRoom(unsigned char* at, int room, int max_detections) {
    boxes = reinterpret_cast<T*>(at);
    kept_boxes = boxes + 4 * room;
    candidates = reinterpret_cast<Candidate<T>*>(kept_boxes + 4 * max_detections);
    classes = reinterpret_cast<int32_t*>(candidates + room);
    kept_classes = classes + room;
    boxes_upto = kept_classes + max_detections;
    bins = boxes_upto + kBins;
    left_out = reinterpret_cast<unsigned*>(bins + kBins);
  }
};

struct PortionsState {  // shared memory
  GreedyTile tile;
  int sums[kNmsThreads / kWarp];
  int count, bin;
};

// The candidates of one image. Every function is called by all threads of the block.
template <typename T, typename Scores>
struct Candidates {
  using Key = typename FloatTraits<T>::Bits;
  const Scores& scores;
  const PortionsPlan<T>& plan;
  const PortionsRoom<T>& room;
  PortionsState& state;
  const Candidate<T>* list;
  const T* best;
  const Softmax<T>* softmax;
  int32_t* seen;
  int64_t first_row;
  int num_listed;
  bool from_list;  // or from the scores

  __device__ uint32_t class_of(uint32_t flat) const { return flat / static_cast<uint32_t>(scores.num_boxes); }
  // A class that has had its topk is left out from then on.
  __device__ bool is_open(uint32_t flat) const { return seen == nullptr || seen[class_of(flat)] < plan.topk; }

  // body(candidate) for each one from `from` to before `to`.
  template <typename Body>
  __device__ void visit(Candidate<T> from, Candidate<T> to, const Body& body) const {
    const auto meet = [&](Candidate<T> c, Candidate<T> end) {
      if (!(c < from) && c < end && is_open(c.flat)) body(c);
    };
    const int thread = static_cast<int>(threadIdx.x);
    if (from_list) {
      for (int i = thread; i < num_listed; i += kNmsThreads) meet(list[i], to);
      return;
    }
    for (int64_t box = thread; box < scores.num_boxes; box += kNmsThreads) {
      const T most = ceiling_of(best[box]);
      if (!(most > plan.score_threshold) || descending_key(most) > to.key) continue;
      const Softmax<T> of_row = Scores::kSoftmax ? softmax[box] : Softmax<T>{};
      const ClassRange classes = scores.classes(first_row + box);
      const Candidate<T> end = scores.end_of(first_row + box, to);
      for (int c = classes.begin; c < classes.end; ++c) {
        const T score = scores.score(first_row + box, c, of_row);
        if (score > plan.score_threshold)
          meet({descending_key(score), static_cast<uint32_t>(c * scores.num_boxes + box)}, end);
      }
    }
  }

  // How many there are from `from` to before `to`. As many as there is room for are stored.
  __device__ int gather(Candidate<T> from, Candidate<T> to) const {
    if (threadIdx.x == 0) state.count = 0;
    __syncthreads();
    visit(from, to, [&](Candidate<T> c) {
      const int at = atomicAdd(&state.count, 1);
      if (at < plan.room) room.candidates[at] = c;
    });
    __syncthreads();
    return state.count;
  }

  // Which `to`, at most the one given, leaves at least one candidate and at most as many as there is room
  // for. The range is cut into kBins parts; where the first candidates are too many for one part, that part
  // is cut.
  __device__ Candidate<T> narrow(Candidate<T> from, Candidate<T> to) const {
    for (;;) {
      const uint64_t keys = to.key - from.key + (to.flat > 0);
      const bool by_key = keys > 1;
      const uint64_t flats = (to.key > from.key ? uint64_t{1} << 32 : to.flat) - from.flat;
      const uint64_t parts = by_key ? keys : flats;
      int shift = 0;
      while ((parts - 1) >> shift >= kBins) ++shift;
      for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kNmsThreads) room.bins[b] = 0;
      if (threadIdx.x == 0) state.bin = kBins;
      __syncthreads();
      visit(from, to, [&](Candidate<T> c) {
        const uint64_t at = by_key ? c.key - from.key : c.flat - from.flat;
        atomicAdd(&room.bins[at >> shift], 1);
      });
      __syncthreads();
      // The first part that makes them too many.
      sum_bins(room.bins, state.sums, [&](int bin, int before, int upto) {
        if (upto > plan.room && before <= plan.room) {
          state.bin = bin;
          state.count = before;
        }
      });
      __syncthreads();
      const int bin = state.bin, before = state.count;
      __syncthreads();
      const auto begin = [&](int part) {
        const uint64_t at = static_cast<uint64_t>(part) << shift;
        if (part == 0) return from;
        if (at >= parts) return to;
        return by_key ? Candidate<T>{static_cast<Key>(from.key + at), 0}
                      : Candidate<T>{from.key, static_cast<uint32_t>(from.flat + at)};
      };
      if (bin == kBins) return to;
      if (before > 0) return begin(bin);
      to = begin(bin + 1);
      from = begin(bin);
    }
  }

  // Of the sorted candidates leaves out those past the topk of their class.
  __device__ void leave_out_past_topk(int count) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kNmsThreads)
      atomicAdd(&seen[room.classes[i]], 1);
    __syncthreads();
    const int lane = lane_index(), classes = static_cast<int>(scores.num_classes());
    for (int first = warp_index() * kWarp; first < classes; first += kNmsThreads) {
      const int own = first + lane < classes ? seen[first + lane] : 0;
      __syncwarp();  // all lanes have read theirs
      for (unsigned full = __ballot_sync(kAllLanes, own > plan.topk); full != 0; full &= full - 1) {
        const int at = __ffs(static_cast<int>(full)) - 1, category = first + at;
        int upto = __shfl_sync(kAllLanes, own, at);
        for (int begin = (count - 1) / kWarp * kWarp; upto > plan.topk; begin -= kWarp) {
          const bool is_one = begin + lane < count && room.classes[begin + lane] == category;
          const unsigned ones = __ballot_sync(kAllLanes, is_one);
          upto -= __popc(ones);
          if (is_one && upto + __popc(ones & lanes_below(lane)) >= plan.topk)
            atomicOr(&room.left_out[begin / kWarp], 1u << lane);
        }
        if (lane == 0) seen[category] = static_cast<int32_t>(plan.topk);
      }
    }
  }
};

// Boxes: boxes(image, i) is box i of an image.
template <typename T, typename Scores, typename Boxes, bool kByClass>
__global__ void __launch_bounds__(kNmsThreads)
    portions_kernel(Scores scores, Boxes boxes, Shortlist<T> shortlist, PortionsPlan<T> plan,
                    DetectionRows<T> rows) {  // of the first image; those of the others follow
  SSD_DYNAMIC_SHARED(shared);
  __shared__ PortionsState state;
  const int64_t image = blockIdx.x, num_boxes = scores.num_boxes;
  const int thread = static_cast<int>(threadIdx.x);
  const PortionsRoom<T> room(shared, plan.room, plan.max_detections);
  rows.boxes += 4 * image * plan.max_detections;
  rows.scores += image * plan.max_detections;
  rows.labels += image * plan.max_detections;
  rows.indices += image * plan.max_detections;

  if (thread == 0) state.tile.num_kept = state.tile.num_listed = state.bin = 0;
  __syncthreads();
  sum_bins(shortlist.best.bins + image * kBins, state.sums, [&](int bin, int before, int upto) {
    room.boxes_upto[bin] = upto;
    if (is_on_list(before, upto, shortlist.wanted)) atomicMax(&state.bin, bin);
  });
  __syncthreads();
  const int last_bin = state.bin;
  __syncthreads();

  const int64_t first_row = image * num_boxes;
  const int listed = shortlist.counts[image];
  Candidates<T, Scores> candidates{scores,
                                   plan,
                                   room,
                                   state,
                                   shortlist.list + image * shortlist.room,
                                   shortlist.best.best + first_row,
                                   shortlist.best.softmax ? shortlist.best.softmax + first_row : nullptr,
                                   shortlist.seen ? shortlist.seen + image * scores.num_classes() : nullptr,
                                   first_row,
                                   listed,
                                   listed <= shortlist.room};
  Candidate<T> from{0, 0};
  while (from < Candidate<T>::end() && state.tile.num_kept < plan.max_detections) {
    Candidate<T> to = Candidate<T>::end();
    if (candidates.from_list) {
      // As many bins as have the boxes of a portion, or up to the first that has any.
      const int first_bin = ScoreBins<T>::of(from.key);
      const auto boxes_before = [&](int bin) { return bin == 0 ? 0 : room.boxes_upto[bin - 1]; };
      const int before = boxes_before(first_bin);
      if (thread == 0) state.bin = first_bin;
      __syncthreads();
      for (int b = first_bin + thread; b <= last_bin; b += kNmsThreads)
        if (is_on_list(boxes_before(b) - before, boxes_before(b + 1) - before, plan.portion))
          atomicMax(&state.bin, b);
      __syncthreads();
      to = {ScoreBins<T>::begin(state.bin + 1), 0};
      __syncthreads();
    }
    int count = candidates.gather(from, to);
    if (count > plan.room) {
      to = candidates.narrow(from, to);
      count = candidates.gather(from, to);
    }
    from = to;
    if (from.key == ScoreBins<T>::begin(last_bin + 1)) candidates.from_list = false;
    block_sort(room.candidates, count);
    for (int i = thread; i < (count + kWarp - 1) / kWarp; i += kNmsThreads) room.left_out[i] = 0;
    for (int i = thread; i < count; i += kNmsThreads) {
      const uint32_t flat = room.candidates[i].flat, category = candidates.class_of(flat);
      room.classes[i] = static_cast<int32_t>(category);
      store_row(room.boxes, i, boxes(image, flat - category * num_boxes));
    }
    __syncthreads();
    if (shortlist.seen) candidates.leave_out_past_topk(count);
    __syncthreads();
    const OrderedBoxes<T, int32_t, kByClass> ordered{room.boxes, room.classes, room.left_out, count};
    const KeptList<T, int32_t> kept{room.kept_boxes, room.kept_classes};
    keep_in_order(ordered, plan.limit, plan.max_detections, kept, state.tile, [&](int i, int place) {
      const Candidate<T> c = room.candidates[i];
      store_row(rows.boxes, place, load_row(room.boxes, i));
      rows.scores[place] = of_descending_key<T>(c.key);
      rows.labels[place] = room.classes[i];
      rows.indices[place] = static_cast<int64_t>(c.flat) - room.classes[i] * num_boxes;
    });
  }
  const int num_kept = state.tile.num_kept;
  for (int place = num_kept + thread; place < plan.max_detections; place += kNmsThreads) {
    store_row(rows.boxes, place, Box<T>{0, 0, 0, 0});
    rows.scores[place] = 0;
    rows.labels[place] = rows.indices[place] = -1;
  }
  if (thread == 0) rows.count[image] = num_kept;
}

}  // namespace ssd_ops
