// Portable inner loops, and the choice between them and the AVX2 ones.
#include "chain_step.h"

#include <algorithm>
#include <string>
#include <vector>

#include "simd.h"

namespace metacurv {
namespace {

double sum_of_squares(const float* x, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return sum;
}

void squares(const float* x, int64_t rows, int64_t cols, double* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    sums[row] = sum_of_squares(x + row * cols, cols);
  }
}

void step(const ChainTask& task) {
  std::vector<float> below(static_cast<size_t>(task.inputs));
  for (int64_t row = 0; row < task.rows; ++row) {
    std::fill(below.begin(), below.end(), 0.0F);
    for (int64_t k = 0; k < task.outputs; ++k) {
      const float factor = task.x[row * task.x_stride + k];
      const float* weight = task.weight + k * task.inputs;
      for (int64_t i = 0; i < task.inputs; ++i) {
        below[static_cast<size_t>(i)] += factor * weight[i];
      }
    }
    const float* slope = task.slope + (task.first + row) % task.period * task.inputs;
    for (int64_t i = 0; i < task.inputs; ++i) {
      below[static_cast<size_t>(i)] *=
          task.is_rectified ? static_cast<float>(slope[i] > 0.0F) : slope[i];
    }
    task.squares[row] = sum_of_squares(below.data(), task.inputs);
    if (task.y != nullptr) {
      std::copy(below.begin(), below.end(), task.y + row * task.y_stride);
    }
  }
}

}  // namespace

const ChainKernels& chain_baseline() {
  static const ChainKernels kernels = {"baseline", step, squares};
  return kernels;
}

const ChainKernels& chain_kernels() {
  static const ChainKernels& kernels = []() -> const ChainKernels& {
    const ChainKernels* avx2 = chain_avx2();
    const bool is_wide = std::string(simd().name) != simd_baseline().name;
    return avx2 != nullptr && is_wide ? *avx2 : chain_baseline();
  }();
  return kernels;
}

}  // namespace metacurv
