// The vectorised inner loops, one table of function pointers per instruction set.
//
// The package is built for the baseline of its platform (no -march flags), so that one binary runs
// everywhere; `simd()` picks the widest table this CPU runs. All tables give the same bits: lane k
// of a row is added to lanes[k] in row order in float64, whatever the vector width.
//
// A row is 32 consecutive elements, served by one sign word: bit k flips the sign of element k.
#pragma once

#include <cstdint>

#include "../philox.h"

namespace metacurv {

struct SimdTable {
  const char* name;

  // words: [4 n], the sign words of blocks first_block ... first_block + n - 1.
  void (*sign_words)(const SignStream& stream, uint64_t first_block, int64_t n, uint32_t* words);

  // x: [32 rows] of float32, float64 or the bit patterns of float16, bfloat16; words: [rows];
  // lanes: [32].
  void (*sum_f32)(const float* x, const uint32_t* words, int64_t rows, double* lanes);
  void (*sum_f64)(const double* x, const uint32_t* words, int64_t rows, double* lanes);
  void (*sum_f16)(const uint16_t* x, const uint32_t* words, int64_t rows, double* lanes);
  void (*sum_bf16)(const uint16_t* x, const uint32_t* words, int64_t rows, double* lanes);

  // Writes +1 or -1, given as the bit pattern `one` of +1 in an element of 2, 4 or 8 bytes; x: [32
  // rows].
  void (*fill_16)(uint16_t* x, const uint32_t* words, int64_t rows, uint16_t one);
  void (*fill_32)(uint32_t* x, const uint32_t* words, int64_t rows, uint32_t one);
  void (*fill_64)(uint64_t* x, const uint32_t* words, int64_t rows, uint64_t one);
};

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

// The table in use, chosen once. The environment variable METACURV_CPU_ISA=baseline|avx2|avx512
// forces one.
const SimdTable& simd();

const SimdTable& simd_baseline();
// Null where the compiler's target has no such instruction set (not x86-64).
const SimdTable* simd_avx2();
const SimdTable* simd_avx512();

}  // namespace metacurv
