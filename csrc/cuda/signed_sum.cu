// signed_sum and hutchinson_accumulate_ for CUDA tensors: one launch for every kTableTensors
// tensors makes partial sums, one more (for every kFinishTensors) adds them. Everything stays on
// the device and on the current stream.
#include "signed_sum.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "finish_sums.cuh"
#include "launch.h"
#include "launch_plan.h"

namespace metacurv {
namespace {

// One launch for every kFinishTensors tensors; the last has the statistics. No tensors at all are
// one launch if there are statistics: they too count as a sample, of total 0.
void finish_sums(const CudaScope& scope, const char* op, const std::vector<uint32_t>& tile_begin,
                 const double* partials, double* sums, const Statistics& statistics) {
  const size_t n = tile_begin.size() - 1;
  for (size_t first = 0; first < std::max<size_t>(n, 1); first += kFinishTensors) {
    PartialRanges ranges{};
    ranges.first = static_cast<int64_t>(first);
    ranges.tensors = static_cast<int>(std::min<size_t>(n - first, kFinishTensors));
    std::copy_n(tile_begin.begin() + static_cast<std::ptrdiff_t>(first), ranges.tensors + 1,
                ranges.begin);
    const bool is_last = first + kFinishTensors >= n;
    scope.launch(op, finish_sums_kernel, 1, kFinishThreads, ranges, partials, sums,
                 is_last ? statistics : Statistics{});
  }
}

// sums: [T] float64 on the device.
void signed_sums(const char* op, const std::vector<Tensor>& tensors, int64_t seed,
                 const Tensor& probe, const std::vector<int64_t>& numbers,
                 const std::vector<int64_t>& offsets, double* sums, const Statistics& statistics) {
  const LaunchPlan plan(make_views(tensors, probe, numbers, offsets));
  if (tensors.empty() && statistics.mean == nullptr) {
    return;
  }
  // The caching allocator hands this memory out again only to work that comes later on the same
  // stream.
  const Tensor workspace = torch::stable::new_empty(
      probe, {static_cast<int64_t>(plan.tile_begin().back())}, ScalarType::Double);
  double* partials = workspace.mutable_data_ptr<double>();
  const SignSource source = {static_cast<uint64_t>(seed), probe.const_data_ptr<int64_t>()};
  const CudaScope scope(probe);
  double* next = partials;
  for (const TensorTable& table : plan.tables()) {
    scope.launch(op, signed_sum_kernel, table.tiles, kTileThreads, table, source, next);
    next += table.tiles;
  }
  finish_sums(scope, op, plan.tile_begin(), partials, sums, statistics);
}

Tensor signed_sum(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                  const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  Tensor sums =
      torch::stable::new_empty(probe, {static_cast<int64_t>(tensors.size())}, ScalarType::Double);
  signed_sums("signed_sum", tensors, seed, probe, numbers, offsets, sums.mutable_data_ptr<double>(),
              Statistics{});
  return sums;
}

void hutchinson_accumulate_(const Tensor& mean, const Tensor& m2, const Tensor& count,
                            const std::vector<Tensor>& products, int64_t seed, const Tensor& probe,
                            const std::vector<int64_t>& numbers,
                            const std::vector<int64_t>& offsets) {
  check_statistics(mean, m2, count, probe, products.size());
  const auto n = static_cast<int64_t>(products.size());
  const Tensor sums = torch::stable::new_empty(probe, {n}, ScalarType::Double);
  const Statistics statistics = {mean.mutable_data_ptr<double>(), m2.mutable_data_ptr<double>(),
                                 count.mutable_data_ptr<int64_t>(), n};
  signed_sums("hutchinson_accumulate_", products, seed, probe, numbers, offsets,
              sums.mutable_data_ptr<double>(), statistics);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) {
  m.impl("signed_sum", TORCH_BOX(&signed_sum));
  m.impl("hutchinson_accumulate_", TORCH_BOX(&hutchinson_accumulate_));
}

}  // namespace metacurv
