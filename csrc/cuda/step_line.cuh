// Kernels of step_direction_ and move_: one pass over a table of tensors.
//
// Order of summation: a thread adds its squares in float64, then lanes, warps and, in a second
// kernel (finish_sums.cuh), tiles.
//
// Compiled for sm_75 ... sm_120 with 0 spills and emulated on a CPU; never run on a GPU.
#pragma once

#include <cstdint>

#include "../step_line.h"
#include "elements.cuh"
#include "tensor_table.cuh"
#include "warp.cuh"

namespace metacurv {

// Three tensors of one shape and dtype whose elements lie in the same order without gaps.
struct StepTensor {
  void* out;
  const void* x;
  const void* y;
  uint64_t numel;
  double keep;
  uint32_t first_tile;  // index of the thread block, within the launch, that has its first tile
  ElementType type;
  bool aligned;  // all three to 16 bytes
};

constexpr int kStepTensors = 80;  // as many as fit in 4096 bytes of kernel parameters

struct StepTable {
  uint32_t tensors;
  uint32_t tiles;                   // thread blocks of the launch
  StepTensor tensor[kStepTensors];  // none is empty; first_tile ascends
};

static_assert(sizeof(StepTable) + 64 <= 4096, "the other kernel parameters need room");

// A number, or where it lies on the device, so that nobody waits for it.
struct StepNumber {
  double value;
  const double* memory;  // null: `value`

  __device__ __forceinline__ double read() const { return memory == nullptr ? value : *memory; }
};

// out = visitor(x, y) for every element of the tile, in an order that depends on the tile and the
// alignment only. out may be x or y.
template <typename Element, typename Visitor>
__device__ __forceinline__ void visit_step_tile(const StepTensor& tensor, uint32_t tile,
                                                Visitor& visitor) {
  using Bits = typename Element::Bits;
  constexpr int kPackElements = Pack<Bits>::kElements;
  const uint64_t begin = static_cast<uint64_t>(tile - tensor.first_tile) * kTileElements;
  const uint64_t left = tensor.numel - begin;
  const int elements = left < kTileElements ? static_cast<int>(left) : kTileElements;
  Bits* const out = static_cast<Bits*>(tensor.out) + begin;
  const Bits* const x = static_cast<const Bits*>(tensor.x) + begin;
  const Bits* const y = static_cast<const Bits*>(tensor.y) + begin;
  const int thread = static_cast<int>(threadIdx.x);
  const int in_packs = tensor.aligned ? elements / kPackElements * kPackElements : 0;
#pragma unroll 2
  for (int i = thread * kPackElements; i < in_packs; i += kTileThreads * kPackElements) {
    const Pack<Bits> a = *reinterpret_cast<const Pack<Bits>*>(x + i);
    const Pack<Bits> b = *reinterpret_cast<const Pack<Bits>*>(y + i);
    Pack<Bits> result;
#pragma unroll
    for (int e = 0; e < kPackElements; ++e) {
      result.element[e] = visitor(a.element[e], b.element[e]);
    }
    *reinterpret_cast<Pack<Bits>*>(out + i) = result;
  }
#pragma unroll 2
  for (int i = in_packs + thread; i < elements; i += kTileThreads) {
    out[i] = visitor(x[i], y[i]);
  }
}

// This thread's part of the three sums.
struct StepSums {
  double steps = 0.0;
  double starts = 0.0;
  int bad = 0;
};

template <typename Element>
struct DirectElement {
  using Bits = typename Element::Bits;
  using Real = typename Element::Sum;

  StepDirection<Real> formula;
  StepSums sums;

  __device__ __forceinline__ Bits operator()(Bits before, Bits after) {
    const Real x = Element::widen(before);
    Real exact;
    formula(x, Element::widen(after), exact);
    const Bits result = Element::round(exact);
    const Real step = Element::widen(result);
    sums.steps += static_cast<double>(step) * static_cast<double>(step);
    sums.starts += static_cast<double>(x) * static_cast<double>(x);
    sums.bad += is_not_finite(step) ? 1 : 0;
    return result;
  }
};

template <typename Element>
struct MoveElement {
  using Bits = typename Element::Bits;
  using Real = typename Element::Sum;

  Move<Real> formula;

  __device__ __forceinline__ Bits operator()(Bits start, Bits direction) const {
    Real result;
    formula(Element::widen(start), Element::widen(direction), result);
    return Element::round(result);
  }
};

template <typename Element>
__device__ __forceinline__ StepSums direct_tile(const StepTensor& tensor, uint32_t tile,
                                                double lr) {
  using Real = typename Element::Sum;
  DirectElement<Element> visitor{{static_cast<Real>(tensor.keep), static_cast<Real>(lr)}, {}};
  visit_step_tile<Element>(tensor, tile, visitor);
  return visitor.sums;
}

template <typename Element>
__device__ __forceinline__ void move_tile(const StepTensor& tensor, uint32_t tile,
                                          double distance) {
  MoveElement<Element> visitor{{static_cast<typename Element::Sum>(distance)}};
  visit_step_tile<Element>(tensor, tile, visitor);
}

// Grid: table.tiles blocks of kTileThreads. Of each tile, partials[0 ...] gets the sum of squares
// of direction, partials[stride ...] that of before, and partials[2 stride ...] the number of
// elements of direction that are not finite.
__global__ void __launch_bounds__(kTileThreads)
    step_direction_kernel(const __grid_constant__ StepTable table, const StepNumber lr,
                          double* partials, int64_t stride) {
  __shared__ double warp_sums[kTileWarps];
  const uint32_t tile = blockIdx.x;
  const StepTensor tensor = tensor_of_tile(table, tile);
  StepSums sums;
  switch (tensor.type) {
    case ElementType::kFloat32:
      sums = direct_tile<Float32>(tensor, tile, lr.read());
      break;
    case ElementType::kFloat64:
      sums = direct_tile<Float64>(tensor, tile, lr.read());
      break;
    case ElementType::kFloat16:
      sums = direct_tile<Float16>(tensor, tile, lr.read());
      break;
    case ElementType::kBFloat16:
      sums = direct_tile<BFloat16>(tensor, tile, lr.read());
      break;
  }
  const double steps = block_sum(sums.steps, warp_sums);
  const double starts = block_sum(sums.starts, warp_sums);
  const double bad = block_sum(static_cast<double>(sums.bad), warp_sums);
  if (threadIdx.x == 0) {
    partials[tile] = steps;
    partials[stride + tile] = starts;
    partials[2 * stride + tile] = bad;
  }
}

// Grid: table.tiles blocks of kTileThreads.
__global__ void __launch_bounds__(kTileThreads)
    move_kernel(const __grid_constant__ StepTable table, const StepNumber distance) {
  const uint32_t tile = blockIdx.x;
  const StepTensor tensor = tensor_of_tile(table, tile);
  switch (tensor.type) {
    case ElementType::kFloat32:
      return move_tile<Float32>(tensor, tile, distance.read());
    case ElementType::kFloat64:
      return move_tile<Float64>(tensor, tile, distance.read());
    case ElementType::kFloat16:
      return move_tile<Float16>(tensor, tile, distance.read());
    case ElementType::kBFloat16:
      return move_tile<BFloat16>(tensor, tile, distance.read());
  }
}

}  // namespace metacurv
