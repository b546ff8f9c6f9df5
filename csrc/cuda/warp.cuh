// Threads of a warp, and sums over a warp and a thread block in a fixed order, so that two runs
// give the same bits.
#pragma once

namespace metacurv {

constexpr int kWarpThreads = 32;

// Of this thread; thread blocks are one-dimensional.
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpThreads; }

// The sum of `value` over the warp, in lane 0. The whole warp must call it.
__device__ __forceinline__ double warp_sum(double value) {
  constexpr unsigned kAllLanes = 0xffffffffu;
#pragma unroll
  for (int half = kWarpThreads / 2; half > 0; half /= 2) {
    value += __shfl_down_sync(kAllLanes, value, half);
  }
  return value;
}

// The sum of `value` over the thread block, in thread 0. The whole block must call it.
// kWarps: warps of the block; warp_sums: [kWarps], shared, at once free for the next call.
template <int kWarps>
__device__ __forceinline__ double block_sum(double value, double (&warp_sums)[kWarps]) {
  static_assert(kWarps <= kWarpThreads, "the last step is one warp's");
  value = warp_sum(value);
  __syncthreads();  // the block may still be reading warp_sums from the call before
  if (lane_index() == 0) {
    warp_sums[warp_index()] = value;
  }
  __syncthreads();
  if (warp_index() == 0) {
    value = warp_sum(lane_index() < kWarps ? warp_sums[lane_index()] : 0.0);
  }
  return value;
}

}  // namespace metacurv
