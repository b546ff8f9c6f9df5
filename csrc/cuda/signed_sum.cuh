// First kernel of signed_sum and hutchinson_accumulate_: the sum of v_i x_i over each tile, signs
// made in registers.
//
// Order of summation: a thread adds at most 128 elements in float32 (float64 tensors: float64),
// then float64 over lanes, warps and, in the second kernel (finish_sums.cuh), tiles.
#pragma once

#include <cstdint>

#include "warp.cuh"
#include "warp_tile.cuh"

namespace metacurv {

template <typename Element>
struct AddSigned {
  using Bits = typename Element::Bits;
  using Sum = typename Element::Sum;
  static constexpr int kSums = Pack<Bits>::kElements;

  Sum sums[kSums] = {};

  __device__ __forceinline__ void pack(const Pack<Bits>* address, uint32_t signs) {
    const Pack<Bits> pack = *address;
#pragma unroll
    for (int e = 0; e < kSums; ++e) {
      sums[e] += flip(Element::widen(pack.element[e]), signs << (31 - e));
    }
  }

  __device__ __forceinline__ void element(const Bits* address, uint32_t signs) {
    sums[0] += flip(Element::widen(*address), signs << 31);
  }

  __device__ __forceinline__ double total() const {
    double total = 0.0;
#pragma unroll
    for (int e = 0; e < kSums; ++e) {
      total += static_cast<double>(sums[e]);
    }
    return total;
  }
};

// This thread's part of the tile.
template <typename Element>
__device__ __forceinline__ double sum_warp_tile(const TensorTable& table, const TableTensor& tensor,
                                                const WarpTile& tile, const uint32_t* words) {
  AddSigned<Element> visitor;
  visit_tile<typename Element::Bits>(table, tensor, tile, words, visitor);
  return visitor.total();
}

// Grid: table.tiles blocks of kTileThreads. partials: [table.tiles].
__global__ void __launch_bounds__(kTileThreads)
    signed_sum_kernel(const __grid_constant__ TensorTable table, const SignSource source,
                      double* partials) {
  alignas(16) __shared__ uint32_t words[kTileWarps][kWarpWords];
  __shared__ double warp_sums[kTileWarps];
  const int warp = warp_index();
  const TableTensor tensor = tensor_of_tile(table, blockIdx.x);
  const WarpTile tile = warp_tile(tensor, blockIdx.x, warp);
  double sum = 0.0;
  if (!tile.is_empty()) {
    write_sign_words(source, tensor.number, tile, words[warp]);
    switch (tensor.type) {
      case ElementType::kFloat32:
        sum = sum_warp_tile<Float32>(table, tensor, tile, words[warp]);
        break;
      case ElementType::kFloat64:
        sum = sum_warp_tile<Float64>(table, tensor, tile, words[warp]);
        break;
      case ElementType::kFloat16:
        sum = sum_warp_tile<Float16>(table, tensor, tile, words[warp]);
        break;
      case ElementType::kBFloat16:
        sum = sum_warp_tile<BFloat16>(table, tensor, tile, words[warp]);
        break;
    }
  }
  sum = block_sum(sum, warp_sums);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
  }
}

}  // namespace metacurv
