// A list of tensors as one kernel argument, passed by value, so that no launch copies anything to
// the device first (such a copy could not be captured in a CUDA graph). Host code fills it:
// launch_plan.h.
#pragma once

#include <cstdint>

#include "../philox.h"
#include "warp.cuh"

namespace metacurv {

// A thread block handles one tile of a tensor, and each of its warps a quarter of it: one Philox
// block per lane. Tiles lie at multiples of kTileElements in the *global* index, so they hold whole
// Philox blocks wherever a parameter is sharded.
constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarpThreads;
constexpr int kWarpElements = kWarpThreads * static_cast<int>(kBlockElements);
constexpr int kWarpWords = kWarpThreads * kBlockWords;
constexpr int kTileElements = kTileWarps * kWarpElements;

enum class ElementType : uint8_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Elements [begin, end) of one parameter, in global indices; `size` below is an element's.
struct TableTensor {
  void* data;
  uint64_t begin;
  uint64_t end;
  uint32_t number;      // parameter number
  uint32_t first_tile;  // index of the thread block, within the launch, that has its first tile
  ElementType type;
  bool packed;              // contiguous, and 16 bytes at a multiple of 16 / size are aligned
  uint8_t dimensions;       // 0: contiguous
  uint8_t first_dimension;  // where its dimensions start in TensorTable::dimension
};

// Of a strided tensor, which has fewer than 2^32 elements: launch_plan.h cuts larger ones.
struct Dimension {
  int64_t stride;  // in elements
  uint32_t size;
};

// A kernel may take 4096 bytes of parameters. Strided tensors are rare, so the tensors share one
// pool of dimensions; torch allows a tensor 64.
constexpr int kTableTensors = 60;
constexpr int kTableDimensions = 96;

struct TensorTable {
  uint32_t tensors;
  uint32_t tiles;                     // thread blocks of the launch
  TableTensor tensor[kTableTensors];  // none is empty; first_tile ascends
  Dimension dimension[kTableDimensions];
};

static_assert(sizeof(TensorTable) + 64 <= 4096, "the other kernel parameters need room");

// The tensor that a thread block of the launch works on.
__device__ __forceinline__ TableTensor tensor_of_tile(const TensorTable& table, uint32_t tile) {
  uint32_t low = 0;
  uint32_t high = table.tensors - 1;
  while (low < high) {
    const uint32_t middle = (low + high + 1) / 2;
    if (table.tensor[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return table.tensor[low];
}

// Elements that are handled one by one go in batches of rows of 32, to have several loads under way
// at a time.
constexpr int kBatchRows = 4;

// index[r]: where element `position` + 32 r (row-major, from 0) of a strided tensor lies, in
// elements from its data pointer. A position beyond the tensor is allowed, and its index without
// meaning.
__device__ __forceinline__ void strided_indices(const TensorTable& table, const TableTensor& tensor,
                                                uint32_t position, int64_t (&index)[kBatchRows]) {
  uint32_t rest[kBatchRows];
#pragma unroll
  for (int r = 0; r < kBatchRows; ++r) {
    rest[r] = position + static_cast<uint32_t>(r * kWordElements);
    index[r] = 0;
  }
#pragma unroll 1
  for (int d = tensor.first_dimension + tensor.dimensions - 1; d > tensor.first_dimension; --d) {
    const Dimension dimension = table.dimension[d];
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      const uint32_t quotient = rest[r] / dimension.size;
      index[r] += static_cast<int64_t>(rest[r] - quotient * dimension.size) * dimension.stride;
      rest[r] = quotient;
    }
  }
#pragma unroll
  for (int r = 0; r < kBatchRows; ++r) {
    index[r] += static_cast<int64_t>(rest[r]) * table.dimension[tensor.first_dimension].stride;
  }
}

}  // namespace metacurv
