// Look-ups of sixteen outputs by one vpermps. Functions carry the target attribute, so the file
// needs no special flags.
#include "sign_tables.h"

#if defined(__x86_64__)
#include "avx512.h"

namespace metacurv {
namespace {

METACURV_AVX512 void make_tables(const float* x, int64_t n, float* tables) {
  // Lane m of signs_k is -1 where bit k of m is set.
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 minus = _mm512_set1_ps(-1.0f);
  const __m512 signs0 = _mm512_mask_blend_ps(0xaaaa, one, minus);
  const __m512 signs1 = _mm512_mask_blend_ps(0xcccc, one, minus);
  const __m512 signs2 = _mm512_mask_blend_ps(0xf0f0, one, minus);
  const __m512 signs3 = _mm512_mask_blend_ps(0xff00, one, minus);
  for (int64_t g = 0; g < n; ++g, x += kGroup, tables += kTable) {
    // The products are exact, so these four lines round as three additions do.
    __m512 sum = _mm512_mul_ps(_mm512_set1_ps(x[0]), signs0);
    sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(x[1]), signs1));
    sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(x[2]), signs2));
    sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(x[3]), signs3));
    _mm512_storeu_ps(tables, sum);
  }
}

METACURV_AVX512 void interleave(const uint16_t* runs, uint8_t* indices) {
  __m128i index = _mm_maskz_set1_epi8(runs[0], 1);
  index = _mm_or_si128(index, _mm_maskz_set1_epi8(runs[1], 2));
  index = _mm_or_si128(index, _mm_maskz_set1_epi8(runs[2], 4));
  index = _mm_or_si128(index, _mm_maskz_set1_epi8(runs[3], 8));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(indices), index);
}

METACURV_AVX512 void look_up(const float* tables, int64_t table_stride, const uint8_t* indices,
                             int64_t groups, float* sums) {
  static_assert(kRowBlock == 8, "eight accumulators are written out below");
  __m512 sum[kRowBlock];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowBlock; ++r) {
    sum[r] = _mm512_loadu_ps(sums + r * kLanes);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const __m512i index = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices + g * kLanes)));
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRowBlock; ++r) {
      const __m512 table = _mm512_loadu_ps(tables + r * table_stride + g * kTable);
      sum[r] = _mm512_add_ps(sum[r], _mm512_permutexvar_ps(index, table));
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowBlock; ++r) {
    _mm512_storeu_ps(sums + r * kLanes, sum[r]);
  }
}

}  // namespace

const SignTableKernels* sign_tables_avx512() {
  static const SignTableKernels kernels = {"avx512", make_tables, interleave, look_up};
  return &kernels;
}

}  // namespace metacurv

#else

namespace metacurv {
const SignTableKernels* sign_tables_avx512() { return nullptr; }
}  // namespace metacurv

#endif
