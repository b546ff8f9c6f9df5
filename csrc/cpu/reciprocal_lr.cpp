// reciprocal_lr_: the reciprocal rule on one number, for CPU tensors.
#include "../reciprocal_lr.h"

#include <torch/csrc/stable/library.h>

#include "../rule_args.h"

namespace metacurv {
namespace {

double read(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? *tensor.const_data_ptr<double>()
                                                    : *tensor.const_data_ptr<float>();
}

void reciprocal_lr_(const Tensor& scale, const Tensor& trace, double alpha) {
  check_rule(scale, trace, alpha);
  const double value = reciprocal_scale(read(scale), read(trace), alpha);
  if (scale.scalar_type() == ScalarType::Double) {
    *scale.mutable_data_ptr<double>() = value;
  } else {
    *scale.mutable_data_ptr<float>() = static_cast<float>(value);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("reciprocal_lr_", TORCH_BOX(&reciprocal_lr_));
}

}  // namespace metacurv
