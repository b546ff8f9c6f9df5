// Six rows by sixteen columns of the product at a time: twelve accumulators, two vectors of the
// weight and a broadcast factor just fit the sixteen registers. A panel of sixteen columns of the
// weight stays in the first-level cache for all rows of a task.
#include "chain_step.h"

#if defined(__x86_64__)
#include "fma.h"
#endif

namespace metacurv {

#if defined(__x86_64__)

namespace {

static_assert(kRowMultiple % kVector == 0, "stores are whole vectors");

METACURV_FMA_INLINE __m256d squares_of(__m256 y, __m256d sum) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(y));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(y, 1));
  return _mm256_fmadd_pd(high, high, _mm256_fmadd_pd(low, low, sum));
}

// Rows row ... row + kRows - 1 and kVectors vectors of columns from `column` on, of which the last
// is cut by `mask`. slopes: of the task's
// rows; sums: four lanes a row.
template <int kRows, int kVectors, bool kMasked>
METACURV_FMA_INLINE void tile(const ChainTask& task, int64_t row, int64_t column, __m256i mask,
                              const float* const* slopes, double* sums) {
  constexpr bool kIsCut = kMasked && kVectors == 1;
  __m256 y[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      y[r][v] = _mm256_setzero_ps();
    }
  }
  const float* x = task.x + row * task.x_stride;
  const float* weight = task.weight + column;
  for (int64_t k = 0; k < task.outputs; ++k, weight += task.inputs) {
    __m256 w[kVectors];
    w[0] = load<kIsCut>(weight, mask);
    if constexpr (kVectors == 2) {
      w[1] = load<kMasked>(weight + kVector, mask);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 factor = _mm256_broadcast_ss(x + r * task.x_stride + k);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        y[r][v] = _mm256_fmadd_ps(factor, w[v], y[r][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const float* slope = slopes[row + r] + column;
    __m256 squares = _mm256_setzero_ps();
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const bool is_cut = kMasked && v == kVectors - 1;
      const float* at = slope + v * kVector;
      const __m256 s = is_cut ? load<kMasked>(at, mask) : load<false>(at, mask);
      const __m256 below = times_slope(y[r][v], s, task.is_rectified);
      squares = _mm256_fmadd_ps(below, below, squares);
      if (task.y != nullptr) {
        _mm256_storeu_ps(task.y + (row + r) * task.y_stride + column + v * kVector, below);
      }
    }
    double* lanes = sums + 4 * (row + r);
    _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_loadu_pd(lanes), widened(squares)));
  }
}

template <int kVectors, bool kMasked>
METACURV_FMA void panel(const ChainTask& task, int64_t column, __m256i mask,
                        const float* const* slopes, double* sums) {
  int64_t row = 0;
  for (; row + kTileRows <= task.rows; row += kTileRows) {
    tile<kTileRows, kVectors, kMasked>(task, row, column, mask, slopes, sums);
  }
  switch (task.rows - row) {
    case 5:
      return tile<5, kVectors, kMasked>(task, row, column, mask, slopes, sums);
    case 4:
      return tile<4, kVectors, kMasked>(task, row, column, mask, slopes, sums);
    case 3:
      return tile<3, kVectors, kMasked>(task, row, column, mask, slopes, sums);
    case 2:
      return tile<2, kVectors, kMasked>(task, row, column, mask, slopes, sums);
    case 1:
      return tile<1, kVectors, kMasked>(task, row, column, mask, slopes, sums);
    default:
      return;
  }
}

METACURV_FMA void step(const ChainTask& task) {
  double sums[4 * kChainRows] = {};
  const float* slopes[kChainRows];
  int64_t n = task.first % task.period;
  for (int64_t row = 0; row < task.rows; ++row) {
    slopes[row] = task.slope + n * task.inputs;
    n = n + 1 == task.period ? 0 : n + 1;
  }
  int64_t column = 0;
  for (; column + kPanel <= task.inputs; column += kPanel) {
    panel<2, false>(task, column, _mm256_setzero_si256(), slopes, sums);
  }
  const int64_t rest = task.inputs - column;
  if (rest > 0) {
    if (rest > kVector) {
      panel<2, true>(task, column, first_lanes(rest - kVector), slopes, sums);
    } else {
      panel<1, true>(task, column, first_lanes(rest), slopes, sums);
    }
  }
  for (int64_t row = 0; row < task.rows; ++row) {
    task.squares[row] = sum_of(_mm256_loadu_pd(sums + 4 * row));
  }
}

METACURV_FMA void squares(const float* x, int64_t rows, int64_t cols, double* sums) {
  for (int64_t row = 0; row < rows; ++row, x += cols) {
    __m256d even = _mm256_setzero_pd();
    __m256d odd = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + kPanel <= cols; i += kPanel) {
      even = squares_of(_mm256_loadu_ps(x + i), even);
      odd = squares_of(_mm256_loadu_ps(x + i + kVector), odd);
    }
    for (; i < cols; i += kVector) {
      even = squares_of(_mm256_maskload_ps(x + i, first_lanes(cols - i)), even);
    }
    sums[row] = sum_of(_mm256_add_pd(even, odd));
  }
}

}  // namespace

const ChainKernels* chain_avx2() {
  static const ChainKernels kernels = {"avx2", step, squares};
  return &kernels;
}

#else

const ChainKernels* chain_avx2() { return nullptr; }

#endif

}  // namespace metacurv
