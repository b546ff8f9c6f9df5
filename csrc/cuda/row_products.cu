// row_products for CUDA tensors: at most three launches, each input read by one of them.
#include "row_products.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../row_products.h"
#include "launch.h"

namespace metacurv {
namespace {

constexpr const char* kOp = "row_products";

// A grid of `blocks`, which CUDA limits.
uint32_t grid(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "metacurv: ", kOp, " needs ",
                  blocks, " thread blocks, too many for one launch");
  return static_cast<uint32_t>(blocks);
}

template <typename T>
void launch_products(const Tensor& a, const Tensor& u, const Tensor& w, Tensor& sums) {
  const int64_t draws = u.size(0);
  const int64_t rows = u.size(1);
  const int64_t elements = rows * u.size(2);
  const int64_t tiles = (elements + kProductTile - 1) / kProductTile;
  // The caching allocator hands this memory out again only to work that comes later on the same
  // stream.
  const Tensor norms = torch::stable::new_empty(a, {rows}, ScalarType::Double);
  // The partial sums of single tiles are the sums.
  const Tensor partials =
      tiles == 1 ? sums : torch::stable::new_empty(a, {draws, tiles, 2}, ScalarType::Double);
  const CudaScope scope(a);
  if (tiles > 0) {
    scope.launch(kOp, squared_norms_kernel<T>, grid((rows + kProductWarps - 1) / kProductWarps),
                 kProductThreads, a.const_data_ptr<T>(), rows, a.size(1),
                 norms.mutable_data_ptr<double>());
    ProductArguments<T> arguments{};
    arguments.u = u.const_data_ptr<T>();
    arguments.w = w.const_data_ptr<T>();
    arguments.norms = norms.const_data_ptr<double>();
    arguments.partials = partials.mutable_data_ptr<double>();
    arguments.rows = rows;
    arguments.cols = u.size(2);
    arguments.tiles = tiles;
    scope.launch(kOp, row_products_kernel<T>, grid(draws * tiles), kProductThreads, arguments);
  }
  if (tiles != 1) {
    scope.launch(kOp, finish_products_kernel, grid(draws), kProductThreads,
                 partials.const_data_ptr<double>(), tiles, sums.mutable_data_ptr<double>());
  }
}

// a: [N, I]; u, w: [R, N, O] -> float64 [R, 2].
Tensor row_products(const Tensor& a, const Tensor& u, const Tensor& w) {
  check_row_products(a, u, w);
  Tensor sums = torch::stable::new_empty(a, {u.size(0), 2}, ScalarType::Double);
  if (sums.numel() > 0) {
    (a.scalar_type() == ScalarType::Float
         ? launch_products<float>
         : launch_products<double>)(packed(a), packed(u), packed(w), sums);
  }
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) { m.impl("row_products", TORCH_BOX(&row_products)); }

}  // namespace metacurv
