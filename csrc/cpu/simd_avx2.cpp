// The AVX2 table (with FMA and F16C). Functions carry the target attribute, so the file needs no
// special flags.
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define METACURV_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace metacurv {
namespace {

// Four blocks, one in each 64-bit lane. The low halves count; the upper halves hold leftovers of
// products, which _mm256_mul_epu32 does not look at, so no round has to clear or move them.
struct FourBlocks {
  __m256i c0;
  __m256i c1;
  __m256i c2;
  __m256i c3;
};

// What all blocks of a call share, spread over vectors once.
struct RoundKeys {
  __m256i k0[kPhiloxRounds];
  __m256i k1[kPhiloxRounds];
};

METACURV_AVX2 inline RoundKeys round_keys(PhiloxKey key) {
  RoundKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.k0[round] = _mm256_set1_epi64x(key.word[0]);
    keys.k1[round] = _mm256_set1_epi64x(key.word[1]);
    key.word[0] += kPhiloxW0;
    key.word[1] += kPhiloxW1;
  }
  return keys;
}

METACURV_AVX2 inline void philox_round(FourBlocks* b, __m256i k0, __m256i k1) {
  const __m256i p0 = _mm256_mul_epu32(b->c0, _mm256_set1_epi64x(kPhiloxM0));
  const __m256i p1 = _mm256_mul_epu32(b->c2, _mm256_set1_epi64x(kPhiloxM1));
  // The key goes to what is there early: only one xor then waits for the product.
  b->c0 = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(b->c1, k0));
  b->c1 = p1;
  b->c2 = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(b->c3, k1));
  b->c3 = p0;
}

// The low halves of `even` and `odd` as the even and odd 32-bit lanes.
METACURV_AVX2 inline __m256i interleave_low(__m256i even, __m256i odd) {
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}

METACURV_AVX2 inline void store(const FourBlocks& b, uint32_t* words) {
  const __m256i w01 = interleave_low(b.c0, b.c1);
  const __m256i w23 = interleave_low(b.c2, b.c3);
  const __m256i even = _mm256_unpacklo_epi64(w01, w23);  // blocks 0, 2
  const __m256i odd = _mm256_unpackhi_epi64(w01, w23);   // blocks 1, 3
  __m256i* out = reinterpret_cast<__m256i*>(words);
  _mm256_storeu_si256(out, _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
}

METACURV_AVX2 inline FourBlocks four_counters(const SignStream& stream, uint64_t first) {
  const __m256i b = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first)),
                                     _mm256_setr_epi64x(0, 1, 2, 3));
  return {b, _mm256_srli_epi64(b, 32), _mm256_set1_epi64x(stream.number),
          _mm256_set1_epi64x(stream.probe)};
}

// 8 Philox blocks at once, written as 32 words in block order.
METACURV_AVX2 inline void eight_blocks(const SignStream& stream, const RoundKeys& keys,
                                       uint64_t first, uint32_t* words) {
  FourBlocks x = four_counters(stream, first);
  FourBlocks y = four_counters(stream, first + 4);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(&x, keys.k0[round], keys.k1[round]);
    philox_round(&y, keys.k0[round], keys.k1[round]);
  }
  store(x, words);
  store(y, words + 16);
}

METACURV_AVX2 void sign_words(const SignStream& stream, uint64_t first_block, int64_t blocks,
                              uint32_t* words) {
  const RoundKeys keys = round_keys(stream.key);
  int64_t j = 0;
  for (; j + 8 <= blocks; j += 8) {
    eight_blocks(stream, keys, first_block + static_cast<uint64_t>(j), words + kBlockWords * j);
  }
  if (j < blocks) {
    uint32_t last[8 * kBlockWords];
    eight_blocks(stream, keys, first_block + static_cast<uint64_t>(j), last);
    std::copy_n(last, kBlockWords * (blocks - j), words + kBlockWords * j);
  }
}

// Calls rows.row(i, word) for the 16 rows of each group of four blocks, then rows.next_group(). The
// signs of the group after are made between them, a Philox round a row, so that loads and stores
// never pause. A Rows has METACURV_AVX2 methods, which lambdas cannot have.
template <typename Rows>
METACURV_AVX2 inline __attribute__((always_inline)) void each_group(const SignStream& stream,
                                                                    uint64_t first_block,
                                                                    int64_t groups, Rows& rows) {
  constexpr int kGroupRows = 4 * kBlockWords;
  static_assert(kPhiloxRounds < kGroupRows, "a round a row, then the store");
  const RoundKeys keys = round_keys(stream.key);
  alignas(32) uint32_t words[2][kGroupRows];
  sign_words(stream, first_block, 4, words[0]);
  for (int64_t group = 0; group < groups; ++group) {
    const uint32_t* now = words[group % 2];
    FourBlocks next = four_counters(stream, first_block + 4 * static_cast<uint64_t>(group + 1));
#pragma GCC unroll 16
    for (int i = 0; i < kGroupRows; ++i) {
      if (i < kPhiloxRounds) {
        philox_round(&next, keys.k0[i], keys.k1[i]);
      } else if (i == kPhiloxRounds) {
        store(next, words[(group + 1) % 2]);
      }
      rows.row(i, now[i]);
    }
    rows.next_group(kGroupRows);
  }
}

// The same for any number of blocks.
template <typename Rows>
METACURV_AVX2 inline __attribute__((always_inline)) void each_row(const SignStream& stream,
                                                                  uint64_t first_block,
                                                                  int64_t blocks, Rows& rows) {
  const int64_t groups = blocks / 4;
  if (groups > 0) {
    each_group(stream, first_block, groups, rows);
  }
  const int64_t rest = blocks % 4;
  if (rest > 0) {
    uint32_t words[3 * kBlockWords];
    sign_words(stream, first_block + 4 * static_cast<uint64_t>(groups), rest, words);
    for (int i = 0; i < kBlockWords * rest; ++i) {
      rows.row(i, words[i]);
    }
  }
}

// The sign bits of elements `first` ... first + 7 of a row as the top bits of eight 32-bit lanes,
// with leftovers below them; word: the row's word in every lane. The shift counts are constants
// once the loop over `first` is unrolled.
METACURV_AVX2 inline __m256i bits_on_top_32(__m256i word, int first) {
  const __m256i shifts =
      _mm256_sub_epi32(_mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), _mm256_set1_epi32(first));
  return _mm256_sllv_epi32(word, shifts);
}

// The same for four elements in four 64-bit lanes.
METACURV_AVX2 inline __m256i bits_on_top_64(__m256i word, int first) {
  const __m256i shifts =
      _mm256_sub_epi64(_mm256_setr_epi64x(63, 62, 61, 60), _mm256_set1_epi64x(first));
  return _mm256_sllv_epi64(word, shifts);
}

// Signs as factors: row m has -1 in column k where bit k of m is set.
struct SignFactors {
  alignas(32) double row[16][4];
};
constexpr SignFactors sign_factors() {
  SignFactors factors{};
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 4; ++k) {
      factors.row[m][k] = (m >> k) & 1 ? -1.0 : 1.0;
    }
  }
  return factors;
}
constexpr SignFactors kSignFactors = sign_factors();

// Four elements widened to float64, one struct per storage type.
struct WidenF32 {
  METACURV_AVX2 static __m256d load(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
};
struct WidenF64 {
  METACURV_AVX2 static __m256d load(const double* x) { return _mm256_loadu_pd(x); }
};
METACURV_AVX2 inline __m128i load_four_halves(const uint16_t* x) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
}
struct WidenF16 {
  METACURV_AVX2 static __m256d load(const uint16_t* x) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(load_four_halves(x)));
  }
};
struct WidenBf16 {
  METACURV_AVX2 static __m256d load(const uint16_t* x) {
    const __m128i bits = _mm_slli_epi32(_mm_cvtepu16_epi32(load_four_halves(x)), 16);
    return _mm256_cvtps_pd(_mm_castsi128_ps(bits));
  }
};

// Widening keeps two of the four vector ports busy. A multiply-add with a factor from a table that
// stays in the first-level cache needs the others: no instruction is spent on moving sign bits. The
// product is exact, so this rounds as an addition does.
template <typename Widen, typename T>
struct SumRows {
  const T* x;
  __m256d sums[8];

  METACURV_AVX2 inline __attribute__((always_inline)) void row(int i, uint32_t word) {
    constexpr int kStrideLog2 = 5;
    static_assert(sizeof kSignFactors.row[0] == 1 << kStrideLog2, "offsets are made by shifts");
    const char* factors = reinterpret_cast<const char*>(kSignFactors.row);
    const uint64_t shifted = static_cast<uint64_t>(word) << kStrideLog2;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const uint64_t offset = (shifted >> (4 * v)) & (15u << kStrideLog2);
      const __m256d signs = _mm256_load_pd(reinterpret_cast<const double*>(factors + offset));
      sums[v] = _mm256_fmadd_pd(Widen::load(x + kWordElements * i + 4 * v), signs, sums[v]);
    }
  }
  METACURV_AVX2 void next_group(int rows) { x += kWordElements * rows; }
};

template <typename Widen, typename T>
METACURV_AVX2 void sum(const T* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                       double* lanes) {
  SumRows<Widen, T> rows;
  rows.x = x;
  for (int v = 0; v < 8; ++v) {
    rows.sums[v] = _mm256_loadu_pd(lanes + 4 * v);
  }
  each_row(stream, first_block, blocks, rows);
  for (int v = 0; v < 8; ++v) {
    _mm256_storeu_pd(lanes + 4 * v, rows.sums[v]);
  }
}

METACURV_AVX2 inline void fill_row(uint16_t* x, uint32_t word, uint16_t one) {
  const __m256i select = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                           8192, 16384, static_cast<short>(0x8000));
  const __m256i plus = _mm256_set1_epi16(static_cast<short>(one));
  const __m256i sign = _mm256_set1_epi16(static_cast<short>(0x8000));
  for (int part = 0; part < 2; ++part) {
    const __m256i bits = _mm256_set1_epi16(static_cast<short>(word >> (16 * part)));
    const __m256i is_set = _mm256_cmpeq_epi16(_mm256_and_si256(bits, select), select);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 16 * part),
                        _mm256_or_si256(plus, _mm256_and_si256(is_set, sign)));
  }
}

METACURV_AVX2 inline void fill_row(uint32_t* x, uint32_t word, uint32_t one) {
  const __m256 plus = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(one)));
  const __m256 minus = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(one | 0x80000000u)));
  const __m256i splat = _mm256_set1_epi32(static_cast<int>(word));
#pragma GCC unroll 4
  for (int first = 0; first < kWordElements; first += 8) {
    const __m256 signs = _mm256_castsi256_ps(bits_on_top_32(splat, first));
    _mm256_storeu_ps(reinterpret_cast<float*>(x + first), _mm256_blendv_ps(plus, minus, signs));
  }
}

METACURV_AVX2 inline void fill_row(uint64_t* x, uint32_t word, uint64_t one) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  const __m256d plus = _mm256_castsi256_pd(_mm256_set1_epi64x(static_cast<long long>(one)));
  const __m256d minus =
      _mm256_castsi256_pd(_mm256_set1_epi64x(static_cast<long long>(one | kSign)));
  const __m256i splat = _mm256_set1_epi64x(word);
#pragma GCC unroll 8
  for (int first = 0; first < kWordElements; first += 4) {
    const __m256d signs = _mm256_castsi256_pd(bits_on_top_64(splat, first));
    _mm256_storeu_pd(reinterpret_cast<double*>(x + first), _mm256_blendv_pd(plus, minus, signs));
  }
}

template <typename Bits>
struct FillRows {
  Bits* x;
  Bits one;

  METACURV_AVX2 inline __attribute__((always_inline)) void row(int i, uint32_t word) {
    fill_row(x + kWordElements * i, word, one);
  }
  METACURV_AVX2 void next_group(int rows) { x += kWordElements * rows; }
};

template <typename Bits>
METACURV_AVX2 void fill(Bits* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                        Bits one) {
  FillRows<Bits> rows{x, one};
  each_row(stream, first_block, blocks, rows);
}

}  // namespace

const SimdTable* simd_avx2() {
  static const SimdTable table = {
      "avx2",
      sign_words,
      sum<WidenF32, float>,
      sum<WidenF64, double>,
      sum<WidenF16, uint16_t>,
      sum<WidenBf16, uint16_t>,
      fill<uint16_t>,
      fill<uint32_t>,
      fill<uint64_t>,
  };
  return &table;
}

}  // namespace metacurv

#else

namespace metacurv {
const SimdTable* simd_avx2() { return nullptr; }
}  // namespace metacurv

#endif
