// Argument checks of the reciprocal rule, shared by CPU and CUDA.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

namespace metacurv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// scale, trace: one element each, float32 or float64, on one device; alpha: finite, >= 0.
inline void check_rule(const Tensor& scale, const Tensor& trace, double alpha) {
  const auto is_real_scalar = [](const Tensor& tensor) {
    const ScalarType dtype = tensor.scalar_type();
    return tensor.numel() == 1 && (dtype == ScalarType::Float || dtype == ScalarType::Double);
  };
  STD_TORCH_CHECK(is_real_scalar(scale), "metacurv: scale must be one float32 or float64 element");
  STD_TORCH_CHECK(is_real_scalar(trace), "metacurv: trace must be one float32 or float64 element");
  STD_TORCH_CHECK(
      scale.is_cuda() == trace.is_cuda() && scale.get_device_index() == trace.get_device_index(),
      "metacurv: scale and trace must be on one device");
  STD_TORCH_CHECK(std::isfinite(alpha) && alpha >= 0,
                  "metacurv: alpha must be finite and >= 0, got ", alpha);
}

}  // namespace metacurv
