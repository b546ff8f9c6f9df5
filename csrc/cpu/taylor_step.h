// The inner loops of chain_taylor: products of small matrices in which samples lie along the rows.
#pragma once

#include <cstdint>

namespace metacurv {

// x b: x [rows, inner] with any strides, b [inner, columns] with rows `b_stride` apart. Null x: 0.
struct TaylorFactors {
  const float* x;
  int64_t row_stride;
  int64_t inner_stride;
  const float* b;
  int64_t b_stride;
  int64_t inner;
};

// z = bias + the two products, [rows, columns].
struct TaylorTask {
  int64_t rows;
  int64_t columns;
  TaylorFactors factors[2];
  const float* bias;  // [rows]; null: 0
  // What follows, [rows, columns] with rows `stride` apart:
  const float* slope;  // y = slope z; null: y = z
  bool is_rectified;   // the slope is 1 where `slope` is positive, and 0 elsewhere
  const float* curvature;
  const float* other;
  int64_t stride;
  float* y;  // rows y_stride >= columns, a multiple of 8, apart; null: not wanted
  int64_t y_stride;
};

struct TaylorKernels {
  const char* name;
  // Makes y. Returns the sum of curvature z^2, or of other z, whichever is given; else 0.
  double (*step)(const TaylorTask& task);
};

// For the instruction set in use (simd().name); AVX2's where that is AVX-512.
const TaylorKernels& taylor_kernels();

const TaylorKernels& taylor_baseline();
const TaylorKernels* taylor_avx2();  // null where the target has no such instruction set

}  // namespace metacurv
