// Kernel of rademacher_: every tensor of a table becomes a probe, entries +1 and -1.
#pragma once

#include <cstdint>

#include "warp_tile.cuh"

namespace metacurv {

template <typename Element>
struct WriteSigns {
  using Bits = typename Element::Bits;

  __device__ __forceinline__ void pack(Pack<Bits>* address, uint32_t signs) const {
    Pack<Bits> pack;
#pragma unroll
    for (int e = 0; e < Pack<Bits>::kElements; ++e) {
      pack.element[e] = signed_one<Element>(signs >> e);
    }
    *address = pack;
  }

  __device__ __forceinline__ void element(Bits* address, uint32_t signs) const {
    *address = signed_one<Element>(signs);
  }
};

template <typename Element>
__device__ __forceinline__ void fill_warp_tile(const TensorTable& table, const TableTensor& tensor,
                                               const WarpTile& tile, const uint32_t* words) {
  const WriteSigns<Element> visitor;
  visit_tile<typename Element::Bits>(table, tensor, tile, words, visitor);
}

// Grid: table.tiles blocks of kTileThreads.
__global__ void __launch_bounds__(kTileThreads)
    rademacher_kernel(const __grid_constant__ TensorTable table, const SignSource source) {
  alignas(16) __shared__ uint32_t words[kTileWarps][kWarpWords];
  const int warp = warp_index();
  const TableTensor tensor = tensor_of_tile(table, blockIdx.x);
  const WarpTile tile = warp_tile(tensor, blockIdx.x, warp);
  if (tile.is_empty()) {
    return;
  }
  write_sign_words(source, tensor.number, tile, words[warp]);
  switch (tensor.type) {
    case ElementType::kFloat32:
      return fill_warp_tile<Float32>(table, tensor, tile, words[warp]);
    case ElementType::kFloat64:
      return fill_warp_tile<Float64>(table, tensor, tile, words[warp]);
    case ElementType::kFloat16:
      return fill_warp_tile<Float16>(table, tensor, tile, words[warp]);
    case ElementType::kBFloat16:
      return fill_warp_tile<BFloat16>(table, tensor, tile, words[warp]);
  }
}

}  // namespace metacurv
