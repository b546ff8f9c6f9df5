// The inner loops of chain_draws and chain_columns: small matrix products, with what follows them
// done in registers.
#pragma once

#include <cstdint>

namespace metacurv {

constexpr int64_t kChainRows = 48;   // at most, in a task
constexpr int64_t kRowMultiple = 8;  // what rows of a result are padded to

// y = (x weight) slope for some rows, and the sum of squares of each row of y.
struct ChainTask {
  const float* x;  // [rows, outputs], rows x_stride apart
  int64_t x_stride;
  int64_t rows;
  const float* weight;  // [outputs, inputs]
  int64_t outputs;
  int64_t inputs;
  const float* slope;  // [period, inputs]: row i of x takes row (first + i) % period
  bool is_rectified;   // the slope is 1 where `slope` is positive, and 0 elsewhere
  int64_t first;
  int64_t period;
  float* y;  // [rows, inputs], rows y_stride >= inputs, a multiple of 8, apart; null: not wanted
  int64_t y_stride;
  double* squares;  // [rows]
};

struct ChainKernels {
  const char* name;
  void (*step)(const ChainTask& task);
  // squares[i] = sum of squares of row i, in float64; x: [rows, cols].
  void (*squares)(const float* x, int64_t rows, int64_t cols, double* squares);
};

// For the instruction set in use (simd().name); AVX2's where that is AVX-512.
const ChainKernels& chain_kernels();

const ChainKernels& chain_baseline();
const ChainKernels* chain_avx2();  // null where the target has no such instruction set

}  // namespace metacurv
