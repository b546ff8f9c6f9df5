// directional_lr_: one reading of the directional rule, for CPU tensors.
#include "../directional_lr.h"

#include <torch/csrc/stable/library.h>

#include "../rule_args.h"

namespace metacurv {
namespace {

void directional_lr_(const Tensor& scales, const Tensor& shared, const Tensor& reading,
                     double sigma, double kappa, double beta, bool searching) {
  check_directional(scales, shared, reading);
  directional_lr(scales.mutable_data_ptr<double>(), shared.mutable_data_ptr<double>(),
                 reading.const_data_ptr<double>(), scales.size(1), sigma, kappa, beta, searching);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("directional_lr_", TORCH_BOX(&directional_lr_));
}

}  // namespace metacurv
