// The AVX-512 table (F, BW, DQ, VL, and F16C). Functions carry the target attribute, so the file
// needs no special flags.
#include "simd.h"

#if defined(__x86_64__)
#include "avx512.h"

namespace metacurv {
namespace {

// Eight blocks, one in each 64-bit lane. The low halves count; the upper halves hold leftovers of
// products, which _mm512_mul_epu32 does not look at, so no round has to clear or move them.
struct EightBlocks {
  __m512i c0;
  __m512i c1;
  __m512i c2;
  __m512i c3;
};

METACURV_AVX512 inline void philox_round(EightBlocks* b, __m512i k0, __m512i k1) {
  constexpr int kXor3 = 0x96;
  const __m512i p0 = _mm512_mul_epu32(b->c0, _mm512_set1_epi64(kPhiloxM0));
  const __m512i p1 = _mm512_mul_epu32(b->c2, _mm512_set1_epi64(kPhiloxM1));
  b->c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), b->c1, k0, kXor3);
  b->c1 = p1;
  b->c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), b->c3, k1, kXor3);
  b->c3 = p0;
}

// The low halves of `even` and `odd` as the even and odd 32-bit lanes.
METACURV_AVX512 inline __m512i interleave_low(__m512i even, __m512i odd) {
  return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}

METACURV_AVX512 inline void store(const EightBlocks& b, uint32_t* words) {
  const __m512i w01 = interleave_low(b.c0, b.c1);
  const __m512i w23 = interleave_low(b.c2, b.c3);
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i last = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  _mm512_storeu_si512(words, _mm512_permutex2var_epi64(w01, first, w23));
  _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(w01, last, w23));
}

METACURV_AVX512 inline EightBlocks eight_counters(const SignStream& stream, uint64_t first) {
  const __m512i b = _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first)),
                                     _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  return {b, _mm512_srli_epi64(b, 32), _mm512_set1_epi64(stream.number),
          _mm512_set1_epi64(stream.probe)};
}

// 16 Philox blocks at once, written as 64 words in block order.
METACURV_AVX512 inline void sixteen_blocks(const SignStream& stream, uint64_t first,
                                           uint32_t* words) {
  EightBlocks x = eight_counters(stream, first);
  EightBlocks y = eight_counters(stream, first + 8);
  uint32_t k0 = stream.key.word[0];
  uint32_t k1 = stream.key.word[1];
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const __m512i key0 = _mm512_set1_epi64(k0);
    const __m512i key1 = _mm512_set1_epi64(k1);
    philox_round(&x, key0, key1);
    philox_round(&y, key0, key1);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  store(x, words);
  store(y, words + 32);
}

METACURV_AVX512 void sign_words(const SignStream& stream, uint64_t first_block, int64_t blocks,
                                uint32_t* words) {
  int64_t j = 0;
  for (; j + 16 <= blocks; j += 16) {
    sixteen_blocks(stream, first_block + static_cast<uint64_t>(j), words + kBlockWords * j);
  }
  if (j < blocks) {
    uint32_t last[16 * kBlockWords];
    sixteen_blocks(stream, first_block + static_cast<uint64_t>(j), last);
    std::copy_n(last, kBlockWords * (blocks - j), words + kBlockWords * j);
  }
}

// Eight elements widened to float64, one overload set per storage type.
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

// Asks for the row that lies 8 KiB ahead. The pauses for sign words stop the hardware prefetcher,
// and this keeps memory busy through them: measured at 2^26 float32, 1.15 x the time of x.sum()
// with it, 1.42 x without. Prefetching past the end of a tensor is harmless: a prefetch never
// faults.
template <typename T>
inline __attribute__((always_inline)) void prefetch_row_ahead(const T* row) {
  constexpr uintptr_t kAhead = 8192;
  constexpr uintptr_t kCacheLine = 64;
  const uintptr_t first = reinterpret_cast<uintptr_t>(row) + kAhead;
  for (uintptr_t line = 0; line < kWordElements * sizeof(T); line += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(first + line));
  }
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

// float32: signs are flipped before widening, 16 elements at a time.
METACURV_AVX512 void sum_rows_f32(const float* x, const uint32_t* words, int64_t rows,
                                  double* lanes) {
  constexpr int kFlip = 0x78;  // a ^ (b & c)
  const __m512i sign_bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  const __m512i to_top =
      _mm512_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16);
  const __m512i to_top_high =
      _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512d lanes0 = _mm512_loadu_pd(lanes);
  __m512d lanes1 = _mm512_loadu_pd(lanes + 8);
  __m512d lanes2 = _mm512_loadu_pd(lanes + 16);
  __m512d lanes3 = _mm512_loadu_pd(lanes + 24);
  for (int64_t row = 0; row < rows; ++row, x += kWordElements) {
    prefetch_row_ahead(x);
    const __m512i word = _mm512_set1_epi32(static_cast<int>(words[row]));
    const __m512 low = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_loadu_si512(x), _mm512_sllv_epi32(word, to_top), sign_bit, kFlip));
    const __m512 high = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_loadu_si512(x + 16), _mm512_sllv_epi32(word, to_top_high), sign_bit, kFlip));
    lanes0 = _mm512_add_pd(lanes0, _mm512_cvtps_pd(_mm512_castps512_ps256(low)));
    lanes1 = _mm512_add_pd(lanes1, _mm512_cvtps_pd(_mm512_extractf32x8_ps(low, 1)));
    lanes2 = _mm512_add_pd(lanes2, _mm512_cvtps_pd(_mm512_castps512_ps256(high)));
    lanes3 = _mm512_add_pd(lanes3, _mm512_cvtps_pd(_mm512_extractf32x8_ps(high, 1)));
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
      sum_in_pieces<sign_words, float, sum_rows_f32>,
      sum_in_pieces<sign_words, double, sum_rows<WidenF64, double>>,
      sum_in_pieces<sign_words, uint16_t, sum_rows<WidenF16, uint16_t>>,
      sum_in_pieces<sign_words, uint16_t, sum_rows<WidenBf16, uint16_t>>,
      fill_in_pieces<sign_words, uint16_t, fill_16>,
      fill_in_pieces<sign_words, uint32_t, fill_32>,
      fill_in_pieces<sign_words, uint64_t, fill_64>,
  };
  return &table;
}

}  // namespace metacurv

#else

namespace metacurv {
const SimdTable* simd_avx512() { return nullptr; }
}  // namespace metacurv

#endif
