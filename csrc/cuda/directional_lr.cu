// directional_lr_ for CUDA tensors: one launch of one thread, no host sync.
#include "directional_lr.cuh"

#include <torch/csrc/stable/library.h>

#include "../rule_args.h"
#include "launch.h"

namespace metacurv {
namespace {

void directional_lr_(const Tensor& scales, const Tensor& shared, const Tensor& reading,
                     double sigma, double kappa, double beta, bool searching) {
  check_directional(scales, shared, reading);
  CudaScope(scales).launch("directional_lr_", directional_lr_kernel, 1, 1,
                           scales.mutable_data_ptr<double>(), shared.mutable_data_ptr<double>(),
                           reading.const_data_ptr<double>(), scales.size(1), sigma, kappa, beta,
                           searching);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) {
  m.impl("directional_lr_", TORCH_BOX(&directional_lr_));
}

}  // namespace metacurv
