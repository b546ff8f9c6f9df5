// Argument checks of the learning-rate rules, shared by CPU and CUDA.
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

// scales [4, n], shared [6], reading [1 + 2 n]: contiguous float64 on one device.
inline void check_directional(const Tensor& scales, const Tensor& shared, const Tensor& reading) {
  for (const Tensor* tensor : {&scales, &shared, &reading}) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Double && tensor->is_contiguous(),
                    "metacurv: scales, shared and reading must be contiguous and float64");
    STD_TORCH_CHECK(tensor->is_cuda() == scales.is_cuda() &&
                        tensor->get_device_index() == scales.get_device_index(),
                    "metacurv: scales, shared and reading must be on one device");
  }
  STD_TORCH_CHECK(scales.dim() == 2 && scales.size(0) == 4 && shared.dim() == 1 &&
                      shared.size(0) == 6 && reading.dim() == 1 &&
                      reading.size(0) == 1 + 2 * scales.size(1),
                  "metacurv: scales must be [4, n], shared [6] and reading [1 + 2 n]");
}

}  // namespace metacurv
