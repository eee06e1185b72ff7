// Exact greedy NMS within groups, on the CPU: each group by itself, groups in parallel.
#pragma once

#include "common/share_out.h"
#include "nms/greedy.h"

namespace ssd_ops {

template <typename T>
class GroupedNms {
 public:
  // As GreedyNms::run; group_at(i) is the group of index i, any int64.
  template <typename BoxAt, typename GroupAt>
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, const GroupAt& group_at,
           OverlapLimit<T> limit, std::vector<int64_t>& kept) {
    struct Worker {
      GreedyNms<T> greedy;
      std::vector<int64_t> kept;
    };
    is_kept_.assign(order.size(), 0);
    each<Worker>(order, group_at,
                 [&](Worker& worker, const std::vector<int64_t>& indices, const size_t* positions) {
                   worker.greedy.run(indices, box_at, limit, worker.kept);
                   for (const int64_t k : worker.kept) is_kept_[positions[k]] = 1;
                 });
    kept.clear();
    for (size_t position = 0; position < order.size(); ++position)
      if (is_kept_[position]) kept.push_back(static_cast<int64_t>(position));
  }

  // body(worker, indices, positions) for each group, groups in parallel: the indices of its boxes, in order,
  // and their positions in the order of all. A thread has a Worker of its own.
  template <typename Worker, typename GroupAt, typename Body>
  void each(const std::vector<int64_t>& order, const GroupAt& group_at, const Body& body) {
    constexpr int64_t kGrain = 2048;  // boxes of a part of the work
    if (order.empty()) return;
    gather(order, group_at);
    const int64_t num_groups = static_cast<int64_t>(starts_.size()) - 1;
    // Groups side by side are one part of the work.
    const int64_t part = max_of<int64_t>(1, num_groups * kGrain / static_cast<int64_t>(order.size()));
    share_out((num_groups + part - 1) / part, [&](const auto& next) {
      Worker worker;
      std::vector<int64_t> indices;
      for (int64_t i; next(i);)
        for (int64_t g = i * part; g < min_of((i + 1) * part, num_groups); ++g) {
          indices.clear();
          for (size_t p = starts_[g]; p < starts_[g + 1]; ++p) indices.push_back(order[positions_[p]]);
          body(worker, indices, positions_.data() + starts_[g]);
        }
    });
  }

 private:
  // positions_[starts_[g] .. starts_[g + 1]): the positions of one group in `order`, ascending.
  template <typename GroupAt>
  void gather(const std::vector<int64_t>& order, const GroupAt& group_at) {
    const size_t count = order.size();
    groups_.clear();
    for (const int64_t index : order) groups_.push_back(group_at(index));
    const auto [least, greatest] = std::minmax_element(groups_.begin(), groups_.end());
    // Unsigned, since the difference of two int64 may not fit in one.
    const uint64_t low = static_cast<uint64_t>(*least), range = static_cast<uint64_t>(*greatest) - low;
    positions_.resize(count);
    if (range < 4 * count + 1024) {  // few numbers that lie close, as classes do: count them
      starts_.assign(static_cast<size_t>(range) + 2, 0);
      for (const int64_t group : groups_) ++starts_[static_cast<uint64_t>(group) - low + 1];
      for (size_t g = 1; g < starts_.size(); ++g) starts_[g] += starts_[g - 1];
      next_.assign(starts_.begin(), starts_.end() - 1);
      for (size_t i = 0; i < count; ++i) positions_[next_[static_cast<uint64_t>(groups_[i]) - low]++] = i;
      return;
    }
    for (size_t i = 0; i < count; ++i) positions_[i] = i;
    std::stable_sort(positions_.begin(), positions_.end(),
                     [&](size_t a, size_t b) { return groups_[a] < groups_[b]; });
    starts_.assign(1, 0);
    for (size_t i = 1; i < count; ++i)
      if (groups_[positions_[i]] != groups_[positions_[i - 1]]) starts_.push_back(i);
    starts_.push_back(count);
  }

  std::vector<int64_t> groups_;
  std::vector<size_t> positions_, starts_, next_;
  std::vector<uint8_t> is_kept_;
};

}  // namespace ssd_ops
