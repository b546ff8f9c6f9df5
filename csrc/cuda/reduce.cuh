// Sums over a warp and over a thread block in a fixed order, so that two runs give the same bits.
//
// Checked so far: compiled for sm_75 ... sm_120 and run thread by thread on a CPU. Never run on a
// GPU.
#pragma once

namespace metacurv {

// The sum of `value` over the warp, in lane 0. The whole warp must call it.
__device__ __forceinline__ double warp_sum(double value) {
  constexpr unsigned kAllLanes = 0xffffffffu;
#pragma unroll
  for (int half = warpSize / 2; half > 0; half /= 2) {
    value += __shfl_down_sync(kAllLanes, value, half);
  }
  return value;
}

// The sum of `value` over the thread block, in thread 0. The whole block must call it, with whole
// warps. warp_sums: [blockDim.x / 32], at most 32, shared by the block; it may be used again at
// once.
__device__ __forceinline__ double block_sum(double value, double* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  const int warp = static_cast<int>(threadIdx.x) / warpSize;
  value = warp_sum(value);
  __syncthreads();  // whoever still reads warp_sums from the last call has to finish
  if (lane == 0) {
    warp_sums[warp] = value;
  }
  __syncthreads();
  if (warp == 0) {
    const int warps = static_cast<int>(blockDim.x) / warpSize;
    value = warp_sum(lane < warps ? warp_sums[lane] : 0.0);
  }
  return value;
}

}  // namespace metacurv
