// The arguments of softmax_factor, checked for CPU and CUDA.
#pragma once

#include <limits>

#include "tensor_list.h"

namespace metacurv {

// sqrt_p: [M, C]; root: [M]; float32 or float64 both, on one device.
inline void check_softmax_factor(const Tensor& sqrt_p, const Tensor& root, int64_t number,
                                 int64_t n_probes) {
  const ScalarType dtype = sqrt_p.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "metacurv: sqrt_p must be float32 or float64, got scalar type ",
                  static_cast<int>(dtype));
  STD_TORCH_CHECK(sqrt_p.dim() == 2, "metacurv: sqrt_p must be a matrix, got ", sqrt_p.dim(),
                  " dimensions");
  STD_TORCH_CHECK(root.dim() == 1 && root.size(0) == sqrt_p.size(0) &&
                      root.scalar_type() == dtype && on_one_device(root, sqrt_p),
                  "metacurv: root must have ", sqrt_p.size(0),
                  " elements, of sqrt_p's dtype and on its device, got ", root.numel());
  STD_TORCH_CHECK(number >= 0 && number <= std::numeric_limits<uint32_t>::max(),
                  "metacurv: number must be in [0, 2^32), got ", number);
  STD_TORCH_CHECK(n_probes >= 0, "metacurv: n_probes must be >= 0, got ", n_probes);
}

}  // namespace metacurv
