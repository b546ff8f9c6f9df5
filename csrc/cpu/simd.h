// The vectorised inner loops, one table of function pointers per instruction set.
//
// The package is built for the baseline of its platform (no -march flags), so that one binary runs
// everywhere; `simd()` picks the widest table this CPU runs. All tables give the same bits: lane k
// of a row is added to lanes[k] in row order in float64, whatever the vector width.
//
// A row is 32 consecutive elements, served by one sign word: bit k flips the sign of element k. A
// block is four rows, served by one Philox call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../philox.h"

namespace metacurv {

struct SimdTable {
  const char* name;

  // words: [4 blocks], the sign words of blocks first_block ... first_block + blocks - 1.
  void (*sign_words)(const SignStream& stream, uint64_t first_block, int64_t blocks,
                     uint32_t* words);

  // Adds v_i x_i of whole blocks to the lanes. x: [128 blocks] of float32, float64 or the bit
  // patterns of float16, bfloat16; lanes: [32].
  void (*sum_f32)(const float* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  double* lanes);
  void (*sum_f64)(const double* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  double* lanes);
  void (*sum_f16)(const uint16_t* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  double* lanes);
  void (*sum_bf16)(const uint16_t* x, const SignStream& stream, uint64_t first_block,
                   int64_t blocks, double* lanes);

  // Writes +1 or -1, given as the bit pattern `one` of +1 in an element of 2, 4 or 8 bytes, to
  // whole blocks. x: [128 blocks].
  void (*fill_16)(uint16_t* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  uint16_t one);
  void (*fill_32)(uint32_t* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  uint32_t one);
  void (*fill_64)(uint64_t* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                  uint64_t one);
};

// For loops over rows that do not make signs themselves: makes the signs of 32 blocks, calls
// on_piece(first element, words, rows), and so on. Short enough that making signs overlaps with the
// loads and stores of the rows before.
template <auto kSignWords, typename OnPiece>
void each_piece(const SignStream& stream, uint64_t first_block, int64_t blocks,
                const OnPiece& on_piece) {
  constexpr int64_t kPieceBlocks = 32;
  uint32_t words[kPieceBlocks * kBlockWords];
  for (int64_t done = 0; done < blocks; done += kPieceBlocks) {
    const int64_t n = std::min(kPieceBlocks, blocks - done);
    kSignWords(stream, first_block + static_cast<uint64_t>(done), n, words);
    on_piece(done * kBlockElements, words, n * kBlockWords);
  }
}

// A table's sum from kSumRows(x, words, rows, lanes).
template <auto kSignWords, typename T, auto kSumRows>
void sum_in_pieces(const T* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                   double* lanes) {
  each_piece<kSignWords>(stream, first_block, blocks,
                         [x, lanes](int64_t begin, const uint32_t* words, int64_t rows) {
                           kSumRows(x + begin, words, rows, lanes);
                         });
}

// A table's fill from kFillRows(x, words, rows, one).
template <auto kSignWords, typename Bits, auto kFillRows>
void fill_in_pieces(Bits* x, const SignStream& stream, uint64_t first_block, int64_t blocks,
                    Bits one) {
  each_piece<kSignWords>(stream, first_block, blocks,
                         [x, one](int64_t begin, const uint32_t* words, int64_t rows) {
                           kFillRows(x + begin, words, rows, one);
                         });
}

// The table in use, chosen once. The environment variable METACURV_CPU_ISA=baseline|avx2|avx512
// forces one.
const SimdTable& simd();

const SimdTable& simd_baseline();
// Null where the compiler's target has no such instruction set (not x86-64).
const SimdTable* simd_avx2();
const SimdTable* simd_avx512();

}  // namespace metacurv
