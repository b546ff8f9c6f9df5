// The AVX-512 table (F, BW, DQ, VL, and F16C). Functions carry the target attribute, so the file
// needs no special flags.
#include "simd.h"

#if defined(__x86_64__)
#include "avx512.h"

namespace metacurv {
namespace {

// Two 32 x 32 -> 64 bit products per 64-bit lane: low and high halves of a * m in the 16 lanes of
// a.
METACURV_AVX512 inline void multiply(__m512i a, __m512i m, __m512i* low, __m512i* high) {
  constexpr __mmask16 kOddLanes = 0xaaaa;
  const __m512i even = _mm512_mul_epu32(a, m);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  *low = _mm512_mask_blend_epi32(kOddLanes, even, _mm512_slli_epi64(odd, 32));
  *high = _mm512_mask_blend_epi32(kOddLanes, _mm512_srli_epi64(even, 32), odd);
}

// 16 Philox blocks at once, written as 64 words in block order.
METACURV_AVX512 inline void sixteen_blocks(const SignStream& stream, uint64_t first,
                                           uint32_t* words) {
  const __m512i step = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i b0 = _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first)), step);
  const __m512i b1 = _mm512_add_epi64(b0, _mm512_set1_epi64(8));
  const __m512i m0 = _mm512_set1_epi32(static_cast<int>(kPhiloxM0));
  const __m512i m1 = _mm512_set1_epi32(static_cast<int>(kPhiloxM1));
  __m512i c0 = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(b0)),
                                  _mm512_cvtepi64_epi32(b1), 1);
  __m512i c1 =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(_mm512_srli_epi64(b0, 32))),
                         _mm512_cvtepi64_epi32(_mm512_srli_epi64(b1, 32)), 1);
  __m512i c2 = _mm512_set1_epi32(static_cast<int>(stream.number));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(stream.probe));
  __m512i k0 = _mm512_set1_epi32(static_cast<int>(stream.key.word[0]));
  __m512i k1 = _mm512_set1_epi32(static_cast<int>(stream.key.word[1]));
  for (int round = 0; round < kPhiloxRounds; ++round) {
    __m512i low0;
    __m512i high0;
    __m512i low1;
    __m512i high1;
    multiply(c0, m0, &low0, &high0);
    multiply(c2, m1, &low1, &high1);
    c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), k0);
    c1 = low1;
    c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), k1);
    c3 = low0;
    k0 = _mm512_add_epi32(k0, _mm512_set1_epi32(static_cast<int>(kPhiloxW0)));
    k1 = _mm512_add_epi32(k1, _mm512_set1_epi32(static_cast<int>(kPhiloxW1)));
  }
  // Transpose: lane j of (c0, c1, c2, c3) is block j, wanted as four neighbouring words.
  const __m512i t0 = _mm512_unpacklo_epi32(c0, c1);
  const __m512i t1 = _mm512_unpackhi_epi32(c0, c1);
  const __m512i t2 = _mm512_unpacklo_epi32(c2, c3);
  const __m512i t3 = _mm512_unpackhi_epi32(c2, c3);
  const __m512i u0 = _mm512_unpacklo_epi64(t0, t2);       // blocks 0, 4, 8, 12
  const __m512i u1 = _mm512_unpackhi_epi64(t0, t2);       // blocks 1, 5, 9, 13
  const __m512i u2 = _mm512_unpacklo_epi64(t1, t3);       // blocks 2, 6, 10, 14
  const __m512i u3 = _mm512_unpackhi_epi64(t1, t3);       // blocks 3, 7, 11, 15
  const __m512i v0 = _mm512_shuffle_i32x4(u0, u1, 0x44);  // 0, 4, 1, 5
  const __m512i v1 = _mm512_shuffle_i32x4(u2, u3, 0x44);  // 2, 6, 3, 7
  const __m512i v2 = _mm512_shuffle_i32x4(u0, u1, 0xee);  // 8, 12, 9, 13
  const __m512i v3 = _mm512_shuffle_i32x4(u2, u3, 0xee);  // 10, 14, 11, 15
  _mm512_storeu_si512(words, _mm512_shuffle_i32x4(v0, v1, 0x88));
  _mm512_storeu_si512(words + 16, _mm512_shuffle_i32x4(v0, v1, 0xdd));
  _mm512_storeu_si512(words + 32, _mm512_shuffle_i32x4(v2, v3, 0x88));
  _mm512_storeu_si512(words + 48, _mm512_shuffle_i32x4(v2, v3, 0xdd));
}

METACURV_AVX512 void sign_words(const SignStream& stream, uint64_t first_block, int64_t n,
                                uint32_t* words) {
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) {
    sixteen_blocks(stream, first_block + static_cast<uint64_t>(j), words + kBlockWords * j);
  }
  if (j < n) {
    uint32_t last[16 * kBlockWords];
    sixteen_blocks(stream, first_block + static_cast<uint64_t>(j), last);
    for (int64_t i = 0; i < kBlockWords * (n - j); ++i) {
      words[kBlockWords * j + i] = last[i];
    }
  }
}

// Eight elements widened to float64, one overload set per storage type.
struct WidenF32 {
  METACURV_AVX512 static __m512d load(const float* x) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(x));
  }
};
struct WidenF64 {
  METACURV_AVX512 static __m512d load(const double* x) { return _mm512_loadu_pd(x); }
};
struct WidenF16 {
  METACURV_AVX512 static __m512d load(const uint16_t* x) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
  }
};
struct WidenBf16 {
  METACURV_AVX512 static __m512d load(const uint16_t* x) {
    const __m256i bits =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
};

METACURV_AVX512 inline __m512d flip(__m512d x, uint32_t signs) {
  const __m512d sign_bit = _mm512_set1_pd(-0.0);
  return _mm512_mask_xor_pd(x, static_cast<__mmask8>(signs), x, sign_bit);
}

template <typename Widen, typename T>
METACURV_AVX512 void sum_rows(const T* x, const uint32_t* words, int64_t rows, double* lanes) {
  __m512d lanes0 = _mm512_loadu_pd(lanes);
  __m512d lanes1 = _mm512_loadu_pd(lanes + 8);
  __m512d lanes2 = _mm512_loadu_pd(lanes + 16);
  __m512d lanes3 = _mm512_loadu_pd(lanes + 24);
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const uint32_t word = words[row];
    prefetch_row_ahead(x);
    lanes0 = _mm512_add_pd(lanes0, flip(Widen::load(x), word));
    lanes1 = _mm512_add_pd(lanes1, flip(Widen::load(x + 8), word >> 8));
    lanes2 = _mm512_add_pd(lanes2, flip(Widen::load(x + 16), word >> 16));
    lanes3 = _mm512_add_pd(lanes3, flip(Widen::load(x + 24), word >> 24));
  }
  _mm512_storeu_pd(lanes, lanes0);
  _mm512_storeu_pd(lanes + 8, lanes1);
  _mm512_storeu_pd(lanes + 16, lanes2);
  _mm512_storeu_pd(lanes + 24, lanes3);
}

METACURV_AVX512 void fill_16(uint16_t* x, const uint32_t* words, int64_t rows, uint16_t one) {
  const __m512i plus = _mm512_set1_epi16(static_cast<short>(one));
  const __m512i minus = _mm512_set1_epi16(static_cast<short>(one | 0x8000u));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    _mm512_storeu_si512(x, _mm512_mask_blend_epi16(words[row], plus, minus));
  }
}

METACURV_AVX512 void fill_32(uint32_t* x, const uint32_t* words, int64_t rows, uint32_t one) {
  const __m512i plus = _mm512_set1_epi32(static_cast<int>(one));
  const __m512i minus = _mm512_set1_epi32(static_cast<int>(one | 0x80000000u));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const uint32_t word = words[row];
    for (int part = 0; part < 2; ++part) {
      const auto signs = static_cast<__mmask16>(word >> (16 * part));
      _mm512_storeu_si512(x + 16 * part, _mm512_mask_blend_epi32(signs, plus, minus));
    }
  }
}

METACURV_AVX512 void fill_64(uint64_t* x, const uint32_t* words, int64_t rows, uint64_t one) {
  const __m512i plus = _mm512_set1_epi64(static_cast<long long>(one));
  const __m512i minus = _mm512_set1_epi64(static_cast<long long>(one | (uint64_t{1} << 63)));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const uint32_t word = words[row];
    for (int part = 0; part < 4; ++part) {
      const auto signs = static_cast<__mmask8>(word >> (8 * part));
      _mm512_storeu_si512(x + 8 * part, _mm512_mask_blend_epi64(signs, plus, minus));
    }
  }
}

}  // namespace

const SimdTable* simd_avx512() {
  static const SimdTable table = {
      "avx512",
      sign_words,
      sum_rows<WidenF32, float>,
      sum_rows<WidenF64, double>,
      sum_rows<WidenF16, uint16_t>,
      sum_rows<WidenBf16, uint16_t>,
      fill_16,
      fill_32,
      fill_64,
  };
  return &table;
}

}  // namespace metacurv

#else

namespace metacurv {
const SimdTable* simd_avx512() { return nullptr; }
}  // namespace metacurv

#endif
