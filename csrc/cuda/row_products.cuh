// Kernels of row_products: squared norms of the rows of a; sums over tiles of a draw; sums of
// those. All in float64, in an order that depends on the shapes only.
#pragma once

#include <cstdint>

#include "warp.cuh"

namespace metacurv {

constexpr int kProductWarps = 8;
constexpr int kProductThreads = kProductWarps * kWarpThreads;
constexpr int kThreadProducts = 32;
constexpr int64_t kProductTile = static_cast<int64_t>(kProductThreads) * kThreadProducts;

// Grid: one warp a row. a: [rows, cols]; norms: [rows].
template <typename T>
__global__ void __launch_bounds__(kProductThreads)
    squared_norms_kernel(const T* a, int64_t rows, int64_t cols, double* norms) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kProductWarps + warp_index();
  if (row >= rows) {
    return;
  }
  double sum = 0.0;
#pragma unroll 4
  for (int64_t c = lane_index(); c < cols; c += kWarpThreads) {
    const double x = a[row * cols + c];
    sum += x * x;
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) {
    norms[row] = sum;
  }
}

// u, w: [draws, rows, cols], the same memory or not; norms: [rows]; partials: [draws, tiles, 2],
// with and without the norms.
template <typename T>
struct ProductArguments {
  const T* u;
  const T* w;
  const double* norms;
  double* partials;
  int64_t rows;
  int64_t cols;
  int64_t tiles;  // of a draw
};

// Grid: one thread block for each tile of kProductTile elements of each draw.
template <typename T>
__global__ void __launch_bounds__(kProductThreads)
    row_products_kernel(const ProductArguments<T> arguments) {
  __shared__ double warp_sums[kProductWarps];
  const int64_t draw = static_cast<int64_t>(blockIdx.x) / arguments.tiles;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) - draw * arguments.tiles;
  const int64_t elements = arguments.rows * arguments.cols;
  const T* const u = arguments.u + draw * elements;
  const T* const w = arguments.w + draw * elements;
  const bool same = u == w;

  int64_t i = tile * kProductTile + static_cast<int64_t>(threadIdx.x);
  // The row and column of element i, kept up to date without a division.
  int64_t row = i / arguments.cols;
  int64_t col = i - row * arguments.cols;
  const int64_t row_step = kProductThreads / arguments.cols;
  const int64_t col_step = kProductThreads - row_step * arguments.cols;
  double weighted = 0.0;
  double plain = 0.0;
#pragma unroll 4
  for (int k = 0; k < kThreadProducts; ++k) {
    if (i < elements) {
      const double x = u[i];
      const double product = x * (same ? x : static_cast<double>(w[i]));
      weighted += arguments.norms[row] * product;
      plain += product;
    }
    i += kProductThreads;
    row += row_step;
    col += col_step;
    if (col >= arguments.cols) {
      col -= arguments.cols;
      ++row;
    }
  }
  weighted = block_sum(weighted, warp_sums);
  plain = block_sum(plain, warp_sums);
  if (threadIdx.x == 0) {
    double* const out = arguments.partials + 2 * static_cast<int64_t>(blockIdx.x);
    out[0] = weighted;
    out[1] = plain;
  }
}

// Grid: one thread block a draw. partials: [draws, tiles, 2]; sums: [draws, 2].
__global__ void __launch_bounds__(kProductThreads)
    finish_products_kernel(const double* partials, int64_t tiles, double* sums) {
  constexpr int kColumns = 2;
  __shared__ double warp_sums[kProductWarps];
  const int64_t draw = blockIdx.x;
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    double sum = 0.0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kProductThreads) {
      sum += partials[kColumns * (draw * tiles + tile) + column];
    }
    sum = block_sum(sum, warp_sums);
    if (threadIdx.x == 0) {
      sums[kColumns * draw + column] = sum;
    }
  }
}

}  // namespace metacurv
