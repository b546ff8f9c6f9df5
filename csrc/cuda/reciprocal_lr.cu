// reciprocal_lr_ for CUDA tensors: one launch of one thread, no host sync.
#include "reciprocal_lr.cuh"

#include <torch/csrc/stable/library.h>

#include "../rule_args.h"
#include "launch.h"

namespace metacurv {
namespace {

template <typename Scale, typename Trace>
void launch(const Tensor& scale, const Tensor& trace, double alpha) {
  CudaScope(scale).launch("reciprocal_lr_", reciprocal_lr_kernel<Scale, Trace>, 1, 1,
                          scale.mutable_data_ptr<Scale>(), trace.const_data_ptr<Trace>(), alpha);
}

template <typename Scale>
void launch(const Tensor& scale, const Tensor& trace, double alpha) {
  if (trace.scalar_type() == ScalarType::Double) {
    launch<Scale, double>(scale, trace, alpha);
  } else {
    launch<Scale, float>(scale, trace, alpha);
  }
}

void reciprocal_lr_(const Tensor& scale, const Tensor& trace, double alpha) {
  check_rule(scale, trace, alpha);
  if (scale.scalar_type() == ScalarType::Double) {
    launch<double>(scale, trace, alpha);
  } else {
    launch<float>(scale, trace, alpha);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) {
  m.impl("reciprocal_lr_", TORCH_BOX(&reciprocal_lr_));
}

}  // namespace metacurv
