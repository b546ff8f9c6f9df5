// Second kernel of signed_sum and hutchinson_accumulate_: adds the partial sums of each tensor's
// tiles and, for hutchinson_accumulate_, folds the sums and their total into a running mean and M2
// (Welford 1962).
//
// One thread block: there is one partial sum for 16384 elements, and blocks would need an order.
#pragma once

#include <cstdint>

#include "warp.cuh"

namespace metacurv {

constexpr int kFinishThreads = 1024;
constexpr int kFinishWarps = kFinishThreads / kWarpThreads;
constexpr int kFinishTensors = 960;  // as many as fit in 4096 bytes of kernel parameters

// A tensor of more tiles than this is summed by the whole block, one of fewer by a warp.
constexpr uint32_t kLongRange = 512;

// Tensor first + t has partial sums begin[t] ... begin[t + 1] - 1; it may have none.
struct PartialRanges {
  int64_t first;
  int tensors;
  uint32_t begin[kFinishTensors + 1];
};

// mean, m2: [tensors + 1], the last entry for the total. A null mean: no statistics.
struct Statistics {
  double* mean;
  double* m2;
  int64_t* count;
  int64_t tensors;
};

static_assert(sizeof(PartialRanges) + sizeof(Statistics) + 64 <= 4096,
              "the kernel's parameters must fit in 4096 bytes");

// The sum of every step-th entry of partials[begin ... end - 1] from `offset` on.
__device__ __forceinline__ double strided_sum(const double* partials, int64_t begin, int64_t end,
                                              int offset, int step) {
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = begin + offset; i < end; i += step) {
    sum += partials[i];
  }
  return sum;
}

// n: the number of samples with this one.
__device__ __forceinline__ void fold(const Statistics& statistics, int64_t entry, double sample,
                                     int64_t n) {
  const double delta = sample - statistics.mean[entry];
  const double mean = statistics.mean[entry] + delta / static_cast<double>(n);
  statistics.mean[entry] = mean;
  statistics.m2[entry] += delta * (sample - mean);
}

// Grid: one block of kFinishThreads. sums: [all tensors of the op], of which this launch writes
// ranges.tensors; with statistics, launches before this one have written those of all other
// tensors.
__global__ void __launch_bounds__(kFinishThreads)
    finish_sums_kernel(const __grid_constant__ PartialRanges ranges, const double* partials,
                       double* sums, const Statistics statistics) {
  __shared__ double warp_sums[kFinishWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  for (int t = 0; t < ranges.tensors; ++t) {
    const uint32_t begin = ranges.begin[t];
    const uint32_t end = ranges.begin[t + 1];
    if (end - begin > kLongRange) {
      const double sum =
          block_sum(strided_sum(partials, begin, end, thread, kFinishThreads), warp_sums);
      if (thread == 0) {
        sums[ranges.first + t] = sum;
      }
    }
  }
  for (int t = warp_index(); t < ranges.tensors; t += kFinishWarps) {
    const uint32_t begin = ranges.begin[t];
    const uint32_t end = ranges.begin[t + 1];
    if (end - begin <= kLongRange) {
      const double sum = warp_sum(strided_sum(partials, begin, end, lane, kWarpThreads));
      if (lane == 0) {
        sums[ranges.first + t] = sum;
      }
    }
  }
  if (statistics.mean == nullptr) {
    return;
  }
  const int64_t n = *statistics.count + 1;  // all threads read it before the barriers below
  __syncthreads();                          // every sum is written
  const double total =
      block_sum(strided_sum(sums, 0, statistics.tensors, thread, kFinishThreads), warp_sums);
  for (int64_t t = thread; t < statistics.tensors; t += kFinishThreads) {
    fold(statistics, t, sums[t], n);
  }
  if (thread == 0) {
    fold(statistics, statistics.tensors, total, n);
    *statistics.count = n;
  }
}

}  // namespace metacurv
