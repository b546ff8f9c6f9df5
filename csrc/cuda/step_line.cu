// step_direction_ and move_ for CUDA tensors: one launch for every kStepTensors tensors, and for
// step_direction_ one more that adds the partial sums. Everything stays on the device and on the
// current stream.
#include "step_line.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../step_args.h"
#include "finish_sums.cuh"
#include "launch.h"
#include "step_plan.h"

namespace metacurv {
namespace {

constexpr int kSums = 3;

// like: a tensor on the device.
Tensor direct_all(const std::vector<Tensor>& direction, const std::vector<Tensor>& before,
                  const std::vector<Tensor>& after, const std::vector<double>& keep,
                  const StepNumber& lr, const Tensor& like) {
  check_lists({"direction", direction}, {"before", before}, {"after", after});
  check_keep(keep, direction.size());
  const CudaScope scope(like);
  const StepPlan plan(direction, before, after, keep);
  const int64_t tiles = plan.tiles();
  Tensor sums = torch::stable::new_empty(like, {kSums}, ScalarType::Double);
  // The caching allocator hands this memory out again only to work that comes later on the same
  // stream.
  const Tensor workspace = torch::stable::new_empty(like, {kSums * tiles}, ScalarType::Double);
  double* const partials = workspace.mutable_data_ptr<double>();
  double* next = partials;
  for (const StepTable& table : plan.tables()) {
    scope.launch("step_direction_", step_direction_kernel, table.tiles, kTileThreads, table, lr,
                 next, tiles);
    next += table.tiles;
  }
  PartialRanges ranges{};  // to that kernel, the three sums are three tensors
  ranges.tensors = kSums;
  for (int k = 0; k <= kSums; ++k) {
    ranges.begin[k] = static_cast<uint32_t>(k * tiles);
  }
  scope.launch("step_direction_", finish_sums_kernel, 1, kFinishThreads, ranges,
               static_cast<const double*>(partials), sums.mutable_data_ptr<double>(), Statistics{});
  plan.copy_back();
  return sums;
}

Tensor step_direction_(const std::vector<Tensor>& direction, const std::vector<Tensor>& before,
                       const std::vector<Tensor>& after, const std::vector<double>& keep,
                       const Tensor& lr) {
  check_number(lr, "lr", direction);
  return direct_all(direction, before, after, keep, {0.0, lr.const_data_ptr<double>()}, lr);
}

Tensor step_direction_number(const std::vector<Tensor>& direction,
                             const std::vector<Tensor>& before, const std::vector<Tensor>& after,
                             const std::vector<double>& keep, double lr) {
  check_not_empty(direction, "lr");
  check_lr(lr);
  return direct_all(direction, before, after, keep, {lr, nullptr}, direction[0]);
}

void move_all(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
              const std::vector<Tensor>& direction, const StepNumber& distance) {
  check_lists({"parameters", parameters}, {"start", start}, {"direction", direction});
  if (parameters.empty()) {
    return;
  }
  const CudaScope scope(parameters[0]);
  const StepPlan plan(parameters, start, direction, {});
  for (const StepTable& table : plan.tables()) {
    scope.launch("move_", move_kernel, table.tiles, kTileThreads, table, distance);
  }
  plan.copy_back();
}

void move_(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
           const std::vector<Tensor>& direction, const Tensor& distance) {
  check_number(distance, "distance", parameters);
  move_all(parameters, start, direction, {0.0, distance.const_data_ptr<double>()});
}

void move_number(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
                 const std::vector<Tensor>& direction, double distance) {
  check_not_empty(parameters, "distance");
  check_distance(distance);
  move_all(parameters, start, direction, {distance, nullptr});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) {
  m.impl("step_direction_", TORCH_BOX(&step_direction_));
  m.impl("step_direction_.number", TORCH_BOX(&step_direction_number));
  m.impl("move_", TORCH_BOX(&move_));
  m.impl("move_.number", TORCH_BOX(&move_number));
}

}  // namespace metacurv
