// rademacher_ for CUDA tensors: one launch for every kTableTensors tensors.
#include "rademacher.cuh"

#include <torch/csrc/stable/library.h>

#include "launch.h"
#include "launch_plan.h"

namespace metacurv {
namespace {

void rademacher_(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                 const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  const LaunchPlan plan(make_views(tensors, probe, numbers, offsets));
  if (plan.tables().empty()) {
    return;
  }
  const SignSource source = {static_cast<uint64_t>(seed), probe.const_data_ptr<int64_t>()};
  const CudaScope scope(probe);
  for (const TensorTable& table : plan.tables()) {
    scope.launch("rademacher_", rademacher_kernel, table.tiles, kTileThreads, table, source);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) { m.impl("rademacher_", TORCH_BOX(&rademacher_)); }

}  // namespace metacurv
