// row_products: sum_n ||a_n||^2 (u_rn . w_rn) and sum_n u_rn . w_rn for every draw r, in one read.
//
// All products and sums are in float64, in an order that depends on the shapes only: rows are taken
// kTileRows at a time, and a tile keeps eight lanes of both sums, so that a row needs no sum over
// its lanes.
#include "../row_products.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "eight.h"

namespace metacurv {
namespace {

constexpr int64_t kTileRows = 16;

struct Sums {
  double weighted;
  double plain;
};

// Lane k of `lanes` gets the sum of x[i] y[i] over all i with i % 8 = k.
// x, y: [n], the same memory or not; as much as lies before x_end and y_end may be read.
template <int kWidth, typename T>
METACURV_INLINE void multiply(Eight<kWidth>& lanes, const T* x, const T* y, int64_t n,
                              const T* x_end, const T* y_end) {
  Eight<kWidth> odd;  // a second accumulator: additions need not wait for each other
  Eight<kWidth> p;
  Eight<kWidth> q;
  lanes.clear();
  odd.clear();
  int64_t i = 0;
  for (; i + 2 * kEight <= n; i += 2 * kEight) {
    p.load(x + i);
    q.load(y + i);
    lanes.add_product(p, q);
    p.load(x + i + kEight);
    q.load(y + i + kEight);
    odd.add_product(p, q);
  }
  if (i + kEight <= n) {
    p.load(x + i);
    q.load(y + i);
    lanes.add_product(p, q);
    i += kEight;
  }
  if (i < n) {
    p.load_first(x + i, n - i, x_end);
    q.load_first(y + i, n - i, y_end);
    odd.add_product(p, q);
  }
  lanes.add(odd);
}

// One tile of one tensor: `rows` <= kTileRows rows of a and, in each of `draws`, of u and w, whose
// draws lie `stride` elements apart. sums: draw r's at sums[r * sums_stride].
template <typename T>
struct Tile {
  const T* a;
  const T* a_end;
  const T* u;
  const T* u_end;
  const T* w;
  const T* w_end;
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  int64_t draws;
  int64_t stride;
  Sums* sums;
  int64_t sums_stride;
};

template <int kWidth, bool kSame, typename T>
METACURV_INLINE void sum_draws(const Tile<T>& tile, const double* norms) {
  for (int64_t r = 0; r < tile.draws; ++r) {
    const T* u = tile.u + r * tile.stride;
    const T* w = kSame ? u : tile.w + r * tile.stride;
    const T* w_end = kSame ? tile.u_end : tile.w_end;
    Eight<kWidth> weighted;
    Eight<kWidth> plain;
    Eight<kWidth> row;
    weighted.clear();
    plain.clear();
    for (int64_t n = 0; n < tile.rows; ++n, u += tile.outputs, w += tile.outputs) {
      multiply(row, u, w, tile.outputs, tile.u_end, w_end);
      weighted.add_product(norms[n], row);
      plain.add(row);
    }
    tile.sums[r * tile.sums_stride] = {weighted.halved(), plain.halved()};
  }
}

template <int kWidth, typename T>
METACURV_INLINE void sum_tile(const Tile<T>& tile) {
  double norms[kTileRows];
  for (int64_t n = 0; n < tile.rows; ++n) {
    const T* row = tile.a + n * tile.inputs;
    Eight<kWidth> lanes;
    multiply(lanes, row, row, tile.inputs, tile.a_end, tile.a_end);
    norms[n] = lanes.halved();
  }
  if (tile.u == tile.w) {
    sum_draws<kWidth, true>(tile, norms);
  } else {
    sum_draws<kWidth, false>(tile, norms);
  }
}

template <typename T>
void sum_tile_narrow(const Tile<T>& tile) {
  sum_tile<kNarrow>(tile);
}

template <typename T>
METACURV_WIDE void sum_tile_wide(const Tile<T>& tile) {
  sum_tile<kWide>(tile);
}

// sums: [R, 2].
template <typename T>
void sum_rows(const Tensor& a, const Tensor& u, const Tensor& w, double* sums) {
  constexpr int64_t kThreadElements = 1 << 15;
  const int64_t rows = a.size(0);
  const int64_t draws = u.size(0);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  Tile<T> all{};
  all.a = a.const_data_ptr<T>();
  all.a_end = all.a + a.numel();
  all.u = u.const_data_ptr<T>();
  all.u_end = all.u + u.numel();
  all.w = w.const_data_ptr<T>();
  all.w_end = all.w + w.numel();
  all.inputs = a.size(1);
  all.outputs = u.size(2);
  all.draws = draws;
  all.stride = rows * all.outputs;
  all.sums_stride = tiles;
  std::vector<Sums> partial(static_cast<size_t>(draws * tiles));
  const auto run = runs_wide() ? sum_tile_wide<T> : sum_tile_narrow<T>;
  const int64_t tile_elements = kTileRows * (all.inputs + draws * all.outputs);
  torch::stable::parallel_for(0, tiles, kThreadElements / std::max<int64_t>(1, tile_elements) + 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t t = begin; t < end; ++t) {
                                  Tile<T> tile = all;
                                  const int64_t first = t * kTileRows;
                                  tile.rows = std::min(kTileRows, rows - first);
                                  tile.a += first * tile.inputs;
                                  tile.u += first * tile.outputs;
                                  tile.w += first * tile.outputs;
                                  tile.sums = partial.data() + t;
                                  run(tile);
                                }
                              });
  for (int64_t r = 0; r < draws; ++r) {
    Sums total{0.0, 0.0};
    for (int64_t t = 0; t < tiles; ++t) {
      const Sums& tile = partial[static_cast<size_t>(r * tiles + t)];
      total.weighted += tile.weighted;
      total.plain += tile.plain;
    }
    sums[2 * r] = total.weighted;
    sums[2 * r + 1] = total.plain;
  }
}

// a: [N, I]; u, w: [R, N, O] -> float64 [R, 2].
Tensor row_products(const Tensor& a, const Tensor& u, const Tensor& w) {
  check_row_products(a, u, w);
  Tensor sums = torch::stable::new_empty(a, {u.size(0), 2}, ScalarType::Double);
  (a.scalar_type() == ScalarType::Float
       ? sum_rows<float>
       : sum_rows<double>)(packed(a), packed(u), packed(w), sums.mutable_data_ptr<double>());
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) { m.impl("row_products", TORCH_BOX(&row_products)); }

}  // namespace metacurv
