// The inner loops of signed_matmul: products with a matrix of signs by table look-up.
//
// Four neighbouring factors x0 ... x3 of a row have 16 signed sums +-x0 +-x1 +-x2 +-x3. With those
// in a table, a product with a sign matrix adds one looked-up value where a plain product needs
// four multiply-adds ("method of the four Russians", Arlazarov et al. 1970), and AVX-512 looks up
// sixteen outputs at once. The matrix itself is never made: the tables are indexed by four sign
// bits.
#pragma once

#include <cstdint>

namespace metacurv {

constexpr int64_t kGroup = 4;     // factors in a table
constexpr int64_t kTable = 16;    // sums in a table
constexpr int64_t kLanes = 16;    // outputs looked up at once
constexpr int64_t kRowBlock = 8;  // rows of x that share the loaded indices
constexpr int64_t kGroupBlock =
    64;  // groups whose tables, 8 x 64 x 64 bytes, stay in the first-level cache

struct SignTableKernels {
  const char* name;

  // tables[m] = sum over k < 4 of (bit k of m ? -x[k] : x[k]) for each of n groups; x: [4 n];
  // tables: [16 n].
  void (*make_tables)(const float* x, int64_t n, float* tables);

  // Indices of 16 outputs in one group from four runs of 16 sign bits: indices[j] = sum over k of
  // bit j of runs[k] << k.
  void (*interleave)(const uint16_t* runs, uint8_t* indices);

  // sums[r][j] += sum over g of tables[r][g][indices[g][j]] for 8 rows r and 16 outputs j.
  // tables: row r starts at tables + r table_stride; indices: [16 groups]; sums: [8, 16].
  void (*look_up)(const float* tables, int64_t table_stride, const uint8_t* indices, int64_t groups,
                  float* sums);
};

// For the instruction set in use (simd().name).
const SignTableKernels& sign_tables();

const SignTableKernels& sign_tables_baseline();
const SignTableKernels* sign_tables_avx512();  // null where the target has no such instruction set

}  // namespace metacurv
