// The AVX2 table (with F16C). Functions carry the target attribute, so the file needs no special
// flags.
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define METACURV_AVX2 __attribute__((target("avx2,f16c")))

namespace metacurv {
namespace {

// Low and high halves of the 32 x 32 -> 64 bit products a * m in the 8 lanes of a.
METACURV_AVX2 inline void multiply(__m256i a, __m256i m, __m256i* low, __m256i* high) {
  constexpr int kOddLanes = 0xaa;
  const __m256i even = _mm256_mul_epu32(a, m);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), kOddLanes);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, kOddLanes);
}

// 8 Philox blocks at once, written as 32 words in block order.
METACURV_AVX2 inline void eight_blocks(const SignStream& stream, uint64_t first, uint32_t* words) {
  uint32_t low[8];
  uint32_t high[8];
  for (uint64_t j = 0; j < 8; ++j) {
    low[j] = static_cast<uint32_t>(first + j);
    high[j] = static_cast<uint32_t>((first + j) >> 32);
  }
  const __m256i m0 = _mm256_set1_epi32(static_cast<int>(kPhiloxM0));
  const __m256i m1 = _mm256_set1_epi32(static_cast<int>(kPhiloxM1));
  __m256i c0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  __m256i c1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
  __m256i c2 = _mm256_set1_epi32(static_cast<int>(stream.number));
  __m256i c3 = _mm256_set1_epi32(static_cast<int>(stream.probe));
  __m256i k0 = _mm256_set1_epi32(static_cast<int>(stream.key.word[0]));
  __m256i k1 = _mm256_set1_epi32(static_cast<int>(stream.key.word[1]));
  for (int round = 0; round < kPhiloxRounds; ++round) {
    __m256i low0;
    __m256i high0;
    __m256i low1;
    __m256i high1;
    multiply(c0, m0, &low0, &high0);
    multiply(c2, m1, &low1, &high1);
    c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), k0);
    c1 = low1;
    c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), k1);
    c3 = low0;
    k0 = _mm256_add_epi32(k0, _mm256_set1_epi32(static_cast<int>(kPhiloxW0)));
    k1 = _mm256_add_epi32(k1, _mm256_set1_epi32(static_cast<int>(kPhiloxW1)));
  }
  // Transpose: lane j of (c0, c1, c2, c3) is block j, wanted as four neighbouring words.
  const __m256i t0 = _mm256_unpacklo_epi32(c0, c1);
  const __m256i t1 = _mm256_unpackhi_epi32(c0, c1);
  const __m256i t2 = _mm256_unpacklo_epi32(c2, c3);
  const __m256i t3 = _mm256_unpackhi_epi32(c2, c3);
  const __m256i u0 = _mm256_unpacklo_epi64(t0, t2);  // blocks 0, 4
  const __m256i u1 = _mm256_unpackhi_epi64(t0, t2);  // blocks 1, 5
  const __m256i u2 = _mm256_unpacklo_epi64(t1, t3);  // blocks 2, 6
  const __m256i u3 = _mm256_unpackhi_epi64(t1, t3);  // blocks 3, 7
  __m256i* out = reinterpret_cast<__m256i*>(words);
  _mm256_storeu_si256(out, _mm256_permute2x128_si256(u0, u1, 0x20));
  _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(u2, u3, 0x20));
  _mm256_storeu_si256(out + 2, _mm256_permute2x128_si256(u0, u1, 0x31));
  _mm256_storeu_si256(out + 3, _mm256_permute2x128_si256(u2, u3, 0x31));
}

METACURV_AVX2 void sign_words(const SignStream& stream, uint64_t first_block, int64_t n,
                              uint32_t* words) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    eight_blocks(stream, first_block + static_cast<uint64_t>(j), words + kBlockWords * j);
  }
  if (j < n) {
    uint32_t last[8 * kBlockWords];
    eight_blocks(stream, first_block + static_cast<uint64_t>(j), last);
    for (int64_t i = 0; i < kBlockWords * (n - j); ++i) {
      words[kBlockWords * j + i] = last[i];
    }
  }
}

// Sign bits of elements `first` ... first + 7 of a row, in the top bit of eight 32-bit lanes; word:
// the row's word in every lane. The shift counts are constants once the loop over `first` is
// unrolled.
METACURV_AVX2 inline __m256i sign_bits_32(__m256i word, int first) {
  const __m256i shifts =
      _mm256_sub_epi32(_mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), _mm256_set1_epi32(first));
  return _mm256_and_si256(_mm256_sllv_epi32(word, shifts),
                          _mm256_set1_epi32(static_cast<int>(0x80000000u)));
}

// The same for four elements in four 64-bit lanes; word: the row's word in every 64-bit lane.
METACURV_AVX2 inline __m256i sign_bits_64(__m256i word, int first) {
  const __m256i shifts =
      _mm256_sub_epi64(_mm256_setr_epi64x(63, 62, 61, 60), _mm256_set1_epi64x(first));
  return _mm256_and_si256(_mm256_sllv_epi64(word, shifts),
                          _mm256_set1_epi64x(static_cast<long long>(uint64_t{1} << 63)));
}

METACURV_AVX2 inline __m256i word_in_32(uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}
METACURV_AVX2 inline __m256i word_in_64(uint32_t word) { return _mm256_set1_epi64x(word); }

struct EightDoubles {
  __m256d low;
  __m256d high;
};

// Eight signed elements widened to float64. Flipping before widening is exact and costs half as
// much.
METACURV_AVX2 inline EightDoubles flip_and_widen(__m256 x, __m256i word, int first) {
  const __m256 flipped = _mm256_xor_ps(x, _mm256_castsi256_ps(sign_bits_32(word, first)));
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(flipped)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(flipped, 1))};
}

// One struct per storage type: `splat` spreads a row's word over a vector, `load` gives elements
// first ... first + 7 of the row at x.
struct SignedF32 {
  METACURV_AVX2 static __m256i splat(uint32_t word) { return word_in_32(word); }
  METACURV_AVX2 static EightDoubles load(const float* x, __m256i word, int first) {
    return flip_and_widen(_mm256_loadu_ps(x + first), word, first);
  }
};
struct SignedF64 {
  METACURV_AVX2 static __m256i splat(uint32_t word) { return word_in_64(word); }
  METACURV_AVX2 static EightDoubles load(const double* x, __m256i word, int first) {
    return {
        _mm256_xor_pd(_mm256_loadu_pd(x + first), _mm256_castsi256_pd(sign_bits_64(word, first))),
        _mm256_xor_pd(_mm256_loadu_pd(x + first + 4),
                      _mm256_castsi256_pd(sign_bits_64(word, first + 4)))};
  }
};
struct SignedF16 {
  METACURV_AVX2 static __m256i splat(uint32_t word) { return word_in_32(word); }
  METACURV_AVX2 static EightDoubles load(const uint16_t* x, __m256i word, int first) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + first));
    return flip_and_widen(_mm256_cvtph_ps(bits), word, first);
  }
};
struct SignedBf16 {
  METACURV_AVX2 static __m256i splat(uint32_t word) { return word_in_32(word); }
  METACURV_AVX2 static EightDoubles load(const uint16_t* x, __m256i word, int first) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + first));
    const __m256i widened = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
    return flip_and_widen(_mm256_castsi256_ps(widened), word, first);
  }
};

template <typename Signed, typename T>
METACURV_AVX2 void sum_rows(const T* x, const uint32_t* words, int64_t rows, double* lanes) {
  __m256d sums[8];
  for (int v = 0; v < 8; ++v) {
    sums[v] = _mm256_loadu_pd(lanes + 4 * v);
  }
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const __m256i word = Signed::splat(words[row]);
    prefetch_row_ahead(x);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const EightDoubles terms = Signed::load(x, word, 8 * part);
      sums[2 * part] = _mm256_add_pd(sums[2 * part], terms.low);
      sums[2 * part + 1] = _mm256_add_pd(sums[2 * part + 1], terms.high);
    }
  }
  for (int v = 0; v < 8; ++v) {
    _mm256_storeu_pd(lanes + 4 * v, sums[v]);
  }
}

METACURV_AVX2 void fill_16(uint16_t* x, const uint32_t* words, int64_t rows, uint16_t one) {
  const __m256i select = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                           8192, 16384, static_cast<short>(0x8000));
  const __m256i plus = _mm256_set1_epi16(static_cast<short>(one));
  const __m256i sign = _mm256_set1_epi16(static_cast<short>(0x8000));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const uint32_t word = words[row];
    for (int part = 0; part < 2; ++part) {
      const __m256i bits = _mm256_set1_epi16(static_cast<short>(word >> (16 * part)));
      const __m256i is_set = _mm256_cmpeq_epi16(_mm256_and_si256(bits, select), select);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 16 * part),
                          _mm256_or_si256(plus, _mm256_and_si256(is_set, sign)));
    }
  }
}

METACURV_AVX2 void fill_32(uint32_t* x, const uint32_t* words, int64_t rows, uint32_t one) {
  const __m256i plus = _mm256_set1_epi32(static_cast<int>(one));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const __m256i word = word_in_32(words[row]);
#pragma GCC unroll 4
    for (int first = 0; first < kWordElements; first += 8) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + first),
                          _mm256_or_si256(plus, sign_bits_32(word, first)));
    }
  }
}

METACURV_AVX2 void fill_64(uint64_t* x, const uint32_t* words, int64_t rows, uint64_t one) {
  const __m256i plus = _mm256_set1_epi64x(static_cast<long long>(one));
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    const __m256i word = word_in_64(words[row]);
#pragma GCC unroll 8
    for (int first = 0; first < kWordElements; first += 4) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + first),
                          _mm256_or_si256(plus, sign_bits_64(word, first)));
    }
  }
}

}  // namespace

const SimdTable* simd_avx2() {
  static const SimdTable table = {
      "avx2",
      sign_words,
      sum_rows<SignedF32, float>,
      sum_rows<SignedF64, double>,
      sum_rows<SignedF16, uint16_t>,
      sum_rows<SignedBf16, uint16_t>,
      fill_16,
      fill_32,
      fill_64,
  };
  return &table;
}

}  // namespace metacurv

#else

namespace metacurv {
const SimdTable* simd_avx2() { return nullptr; }
}  // namespace metacurv

#endif
