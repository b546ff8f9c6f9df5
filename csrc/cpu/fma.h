// AVX2 with fused multiply-add: the attributes of functions that use it, and what they share.
// Include only where __x86_64__ is defined.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define METACURV_FMA __attribute__((target("avx2,fma")))
#define METACURV_FMA_INLINE METACURV_FMA inline __attribute__((always_inline))

namespace metacurv {

constexpr int64_t kVector = 8;           // floats in a register
constexpr int64_t kPanel = 2 * kVector;  // columns of a tile
constexpr int kTileRows = 6;  // twelve accumulators, two vectors and a factor fill the registers

// All bits set in the first n of eight lanes, n > 0; in all of them for n >= 8.
METACURV_FMA_INLINE __m256i first_lanes(int64_t n) {
  static constexpr int32_t kMasks[2 * kVector] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const int64_t kept = n < kVector ? n : kVector;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + kVector - kept));
}

METACURV_FMA_INLINE double sum_of(__m256d lanes) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(lanes), _mm256_extractf128_pd(lanes, 1));
  return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
}

// Four lanes in float64, each the sum of two of eight.
METACURV_FMA_INLINE __m256d widened(__m256 x) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  return _mm256_add_pd(low, high);
}

template <bool kMasked>
METACURV_FMA_INLINE __m256 load(const float* x, __m256i mask) {
  if constexpr (kMasked) {
    return _mm256_maskload_ps(x, mask);
  } else {
    return _mm256_loadu_ps(x);
  }
}

// y times a slope, or where `is_rectified` y where the slope is positive.
METACURV_FMA_INLINE __m256 times_slope(__m256 y, __m256 slope, bool is_rectified) {
  return is_rectified ? _mm256_and_ps(y, _mm256_cmp_ps(slope, _mm256_setzero_ps(), _CMP_GT_OQ))
                      : _mm256_mul_ps(y, slope);
}

}  // namespace metacurv
