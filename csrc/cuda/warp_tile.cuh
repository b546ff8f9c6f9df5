// One warp's share of a tile: its sign words, and the walk over its elements that the list ops use.
#pragma once

#include <cstdint>

#include "../philox.h"
#include "elements.cuh"
#include "tensor_table.cuh"
#include "warp.cuh"

namespace metacurv {

// What all tensors of a launch share of the random-number contract. The probe number is read on the
// device, modulo 2^32, so that a captured graph can advance it.
struct SignSource {
  uint64_t seed;
  const int64_t* probe;
};

// kWarpElements elements from global index `begin` on; [first, last) of them lie in the tensor.
struct WarpTile {
  uint64_t begin;
  int first;
  int last;

  __device__ __forceinline__ bool is_empty() const { return first >= last; }
};

__device__ __forceinline__ WarpTile warp_tile(const TableTensor& tensor, uint32_t tile, int warp) {
  const uint64_t global_tile = tensor.begin / kTileElements + (tile - tensor.first_tile);
  const uint64_t begin = global_tile * kTileElements + static_cast<uint64_t>(warp * kWarpElements);
  const uint64_t first = tensor.begin > begin ? tensor.begin - begin : 0;
  const uint64_t last = tensor.end > begin ? tensor.end - begin : 0;
  constexpr uint64_t kEnd = kWarpElements;
  return {begin, static_cast<int>(first < kEnd ? first : kEnd),
          static_cast<int>(last < kEnd ? last : kEnd)};
}

// Makes the sign words of a tile, one Philox block per lane. words: [kWarpWords], shared by the
// warp alone, 16-byte aligned; bit k of words[r] belongs to element 32 r + k of the tile. The whole
// warp must call it.
__device__ __forceinline__ void write_sign_words(const SignSource& source, uint32_t number,
                                                 const WarpTile& tile, uint32_t* words) {
  const SignStream stream = sign_stream(source.seed, number, static_cast<uint32_t>(*source.probe));
  const PhiloxBlock block =
      sign_block(stream, tile.begin / kBlockElements + static_cast<uint64_t>(lane_index()));
  Pack<uint32_t> pack;
  for (int w = 0; w < kBlockWords; ++w) {
    pack.element[w] = block.word[w];
  }
  reinterpret_cast<Pack<uint32_t>*>(words)[lane_index()] = pack;
  __syncwarp();
}

// Calls the visitor once for every element of the tile that lies in the tensor, in an order that
// depends on the tile and the alignment only.
//
//   visitor.pack(Pack<Bits>* address, signs): 16 aligned bytes, bit e of signs is for element e
//   visitor.element(Bits* address, signs): one element, bit 0 of signs is for it
//
// Packs cover what is aligned and contiguous, in steps of 512 bytes a warp. The rest goes one
// element a lane, 32 neighbours at a time, which is coalesced too where the tensor is contiguous.
template <typename Bits, typename Visitor>
__device__ __forceinline__ void visit_tile(const TensorTable& table, const TableTensor& tensor,
                                           const WarpTile& tile, const uint32_t* words,
                                           Visitor& visitor) {
  const int lane = lane_index();
  Bits* const data = static_cast<Bits*>(tensor.data);
  constexpr int kRow = static_cast<int>(kWordElements);
  // Of the tile's element 0 in the tensor; below 0 it wraps, where the tensor starts in the tile.
  const uint64_t start = tile.begin - tensor.begin;

  int packs_first = tile.first;  // elements [packs_first, packs_last) go in packs
  int packs_last = tile.first;
  if (tensor.packed) {
    constexpr int kPackElements = Pack<Bits>::kElements;
    constexpr int kStep = kWarpThreads * kPackElements;  // elements; it takes kPackElements words
    const int first_step = (tile.first + kStep - 1) / kStep;
    const int last_step = tile.last / kStep;
    const uint32_t* const lane_words = words + lane * kPackElements / kRow;
    const int shift = lane * kPackElements % kRow;
    const uint64_t lane_start = start + static_cast<uint64_t>(lane * kPackElements);
#pragma unroll 8
    for (int step = first_step; step < last_step; ++step) {
      const uint64_t position = lane_start + static_cast<uint64_t>(step * kStep);
      visitor.pack(reinterpret_cast<Pack<Bits>*>(data + static_cast<int64_t>(position)),
                   lane_words[step * kPackElements] >> shift);
    }
    if (first_step < last_step) {
      packs_first = first_step * kStep;
      packs_last = last_step * kStep;
    }
  }

#pragma unroll 1
  for (int part = 0; part < 2; ++part) {
    const int first = part == 0 ? tile.first : packs_last;
    const int last = part == 0 ? packs_first : tile.last;
#pragma unroll 1
    for (int row = first / kRow; row * kRow < last; row += kBatchRows) {
      const uint64_t position = start + static_cast<uint64_t>(row * kRow + lane);
      int64_t index[kBatchRows];
      if (tensor.dimensions == 0) {
#pragma unroll
        for (int r = 0; r < kBatchRows; ++r) {
          index[r] = static_cast<int64_t>(position + static_cast<uint64_t>(r * kRow));
        }
      } else {
        strided_indices(table, tensor, static_cast<uint32_t>(position), index);
      }
#pragma unroll
      for (int r = 0; r < kBatchRows; ++r) {
        const int element = (row + r) * kRow + lane;
        if (element >= first && element < last) {
          visitor.element(data + index[r], words[row + r] >> lane);
        }
      }
    }
  }
}

}  // namespace metacurv
