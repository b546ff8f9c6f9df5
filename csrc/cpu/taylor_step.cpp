// Portable inner loops, and the choice between them and the AVX2 ones.
#include "taylor_step.h"

#include <string>
#include <vector>

#include "simd.h"

namespace metacurv {
namespace {

double step(const TaylorTask& task) {
  double sum = 0.0;
  std::vector<float> z(static_cast<size_t>(task.columns));
  for (int64_t row = 0; row < task.rows; ++row) {
    z.assign(z.size(), task.bias == nullptr ? 0.0F : task.bias[row]);
    for (const TaylorFactors& factors : task.factors) {
      for (int64_t k = 0; factors.x != nullptr && k < factors.inner; ++k) {
        const float x = factors.x[row * factors.row_stride + k * factors.inner_stride];
        const float* b = factors.b + k * factors.b_stride;
        for (int64_t n = 0; n < task.columns; ++n) {
          z[static_cast<size_t>(n)] += x * b[n];
        }
      }
    }
    for (int64_t n = 0; n < task.columns; ++n) {
      const int64_t at = row * task.stride + n;
      const float here = z[static_cast<size_t>(n)];
      if (task.curvature != nullptr) {
        sum += static_cast<double>(task.curvature[at] * here * here);
      } else if (task.other != nullptr) {
        sum += static_cast<double>(task.other[at] * here);
      }
      if (task.y != nullptr) {
        const float slope = task.slope == nullptr ? 1.0F
                            : task.is_rectified   ? static_cast<float>(task.slope[at] > 0.0F)
                                                  : task.slope[at];
        task.y[row * task.y_stride + n] = slope * here;
      }
    }
  }
  return sum;
}

}  // namespace

const TaylorKernels& taylor_baseline() {
  static const TaylorKernels kernels = {"baseline", step};
  return kernels;
}

const TaylorKernels& taylor_kernels() {
  static const TaylorKernels& kernels = []() -> const TaylorKernels& {
    const TaylorKernels* avx2 = taylor_avx2();
    const bool is_wide = std::string(simd().name) != simd_baseline().name;
    return avx2 != nullptr && is_wide ? *avx2 : taylor_baseline();
  }();
  return kernels;
}

}  // namespace metacurv
