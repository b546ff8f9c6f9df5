// Six rows by sixteen columns at a time, as in chain_step_avx2.cpp; both products of a task go to
// the same accumulators.
#include "taylor_step.h"

#if defined(__x86_64__)
#include "fma.h"
#endif

namespace metacurv {

#if defined(__x86_64__)

namespace {

template <int kRows, int kVectors>
struct Tile {
  __m256 z[kRows][kVectors];
};

template <int kRows, int kVectors, bool kMasked>
METACURV_FMA_INLINE void add_product(Tile<kRows, kVectors>& tile, const TaylorFactors& factors,
                                     int64_t row, int64_t column, __m256i mask) {
  constexpr bool kIsCut = kMasked && kVectors == 1;
  const float* x = factors.x + row * factors.row_stride;
  const float* b = factors.b + column;
  for (int64_t k = 0; k < factors.inner; ++k, x += factors.inner_stride, b += factors.b_stride) {
    __m256 columns[kVectors];
    columns[0] = load<kIsCut>(b, mask);
    if constexpr (kVectors == 2) {
      columns[1] = load<kMasked>(b + kVector, mask);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 factor = _mm256_broadcast_ss(x + r * factors.row_stride);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        tile.z[r][v] = _mm256_fmadd_ps(factor, columns[v], tile.z[r][v]);
      }
    }
  }
}

// Rows row ... row + kRows - 1 and kVectors vectors of columns from `column` on, of which the last
// is cut by `mask`. Returns sum with the tile's share added.
template <int kRows, int kVectors, bool kMasked>
METACURV_FMA_INLINE __m256d make_tile(const TaylorTask& task, int64_t row, int64_t column,
                                      __m256i mask, __m256d sum) {
  Tile<kRows, kVectors> tile;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const __m256 bias =
        task.bias == nullptr ? _mm256_setzero_ps() : _mm256_broadcast_ss(task.bias + row + r);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      tile.z[r][v] = bias;
    }
  }
  for (const TaylorFactors& factors : task.factors) {
    if (factors.x != nullptr) {
      add_product<kRows, kVectors, kMasked>(tile, factors, row, column, mask);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = (row + r) * task.stride + column;
    __m256 share = _mm256_setzero_ps();
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m256i cut = kMasked && v == kVectors - 1 ? mask : first_lanes(kVector);
      const int64_t here = at + v * kVector;
      const __m256 z = tile.z[r][v];
      if (task.curvature != nullptr) {
        const __m256 c = load<kMasked>(task.curvature + here, cut);
        share = _mm256_fmadd_ps(c, _mm256_mul_ps(z, z), share);
      } else if (task.other != nullptr) {
        share = _mm256_fmadd_ps(load<kMasked>(task.other + here, cut), z, share);
      }
      if (task.y != nullptr) {
        const __m256 y =
            task.slope == nullptr
                ? z
                : times_slope(z, load<kMasked>(task.slope + here, cut), task.is_rectified);
        _mm256_storeu_ps(task.y + (row + r) * task.y_stride + column + v * kVector, y);
      }
    }
    sum = _mm256_add_pd(sum, widened(share));
  }
  return sum;
}

template <int kVectors, bool kMasked>
METACURV_FMA __m256d panel(const TaylorTask& task, int64_t column, __m256i mask, __m256d sum) {
  int64_t row = 0;
  for (; row + kTileRows <= task.rows; row += kTileRows) {
    sum = make_tile<kTileRows, kVectors, kMasked>(task, row, column, mask, sum);
  }
  switch (task.rows - row) {
    case 5:
      return make_tile<5, kVectors, kMasked>(task, row, column, mask, sum);
    case 4:
      return make_tile<4, kVectors, kMasked>(task, row, column, mask, sum);
    case 3:
      return make_tile<3, kVectors, kMasked>(task, row, column, mask, sum);
    case 2:
      return make_tile<2, kVectors, kMasked>(task, row, column, mask, sum);
    case 1:
      return make_tile<1, kVectors, kMasked>(task, row, column, mask, sum);
    default:
      return sum;
  }
}

METACURV_FMA double step(const TaylorTask& task) {
  __m256d sum = _mm256_setzero_pd();
  int64_t column = 0;
  for (; column + kPanel <= task.columns; column += kPanel) {
    sum = panel<2, false>(task, column, _mm256_setzero_si256(), sum);
  }
  const int64_t rest = task.columns - column;
  if (rest > kVector) {
    sum = panel<2, true>(task, column, first_lanes(rest - kVector), sum);
  } else if (rest > 0) {
    sum = panel<1, true>(task, column, first_lanes(rest), sum);
  }
  return sum_of(sum);
}

}  // namespace

const TaylorKernels* taylor_avx2() {
  static const TaylorKernels kernels = {"avx2", step};
  return &kernels;
}

#else

const TaylorKernels* taylor_avx2() { return nullptr; }

#endif

}  // namespace metacurv
