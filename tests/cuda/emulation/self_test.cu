// Kernels that do one thing right or wrong, for test_emulator.py: what the emulator must run, and
// what it must see.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace metacurv {

extern __shared__ char dynamic_shared[];

namespace {

constexpr uint32_t kAll = 0xffffffffu;

// What is right. out: [blocks * threads] or fewer.

__global__ void indices(double* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * 1000.0 + threadIdx.x + gridDim.x;
}

__global__ void votes(double* out) {
  const bool odd = threadIdx.x % 2 == 1;
  out[3 * threadIdx.x] = __ballot_sync(kAll, odd);
  out[3 * threadIdx.x + 1] = 2 * __any_sync(kAll, threadIdx.x == 63) + __all_sync(kAll, odd);
  out[3 * threadIdx.x + 2] = threadIdx.x % 32 < 8 ? __ballot_sync(0xffu, odd) : 0;
}

__global__ void shuffles(double* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  out[4 * threadIdx.x] = __shfl_sync(kAll, threadIdx.x, 31 - lane);
  out[4 * threadIdx.x + 1] = __shfl_down_sync(kAll, threadIdx.x, 5);
  out[4 * threadIdx.x + 2] = __shfl_up_sync(kAll, threadIdx.x, 5);
  out[4 * threadIdx.x + 3] = __shfl_xor_sync(kAll, threadIdx.x, 6);
}

// The lower half exchanges among itself while the upper half is elsewhere; then all do.
__global__ void masks_of_halves(double* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
  uint32_t value = threadIdx.x;
  for (int turn = 0; turn < (lane < 16 ? 3 : 1); ++turn) {
    value = __shfl_sync(half, value, (lane + 1) % 16 + lane / 16 * 16) + 100;
  }
  out[2 * threadIdx.x] = value;
  out[2 * threadIdx.x + 1] = __shfl_sync(kAll, value, 31 - lane);
}

__global__ void atomics(double* out) {
  atomicAdd(&out[0], 1.0);
  atomicMax(&out[1], static_cast<double>(threadIdx.x));
  atomicAdd(reinterpret_cast<uint32_t*>(&out[2]), 1u);
  double seen = atomicAdd(&out[3], 0.0);
  while (true) {  // multiplies, as it were
    const double before = atomicCAS(&out[3], seen, seen + 2);
    if (before == seen) {
      break;
    }
    seen = before;
  }
}

__global__ void dynamic_memory(double* out) {
  auto* const values = reinterpret_cast<double*>(dynamic_shared);
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

// The block that comes last adds what all have written. out: [blocks] partial sums, a counter, the
// total. kFence: whether partial sums are out before the counter is.
template <bool kFence>
__global__ void last_block_adds(double* out) {
  __shared__ bool is_last;
  const uint32_t blocks = gridDim.x;
  if (threadIdx.x == 0) {
    out[blockIdx.x] = blockIdx.x + 1.0;
    if (kFence) {
      __threadfence();
    }
    is_last = atomicAdd(reinterpret_cast<uint32_t*>(&out[blocks]), 1u) == blocks - 1;
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    __threadfence();
    double sum = 0.0;
    for (uint32_t b = 0; b < blocks; ++b) {
      sum += out[b];
    }
    out[blocks + 1] = sum;
  }
}

// What is wrong.

__global__ void divergent_barrier(double* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}

__global__ void two_barriers(double* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}

__global__ void mask_without_caller(double* out) {
  out[threadIdx.x] = __shfl_sync(0x7fffffffu, threadIdx.x, 0);
}

__global__ void read_outside_mask(double* out) {
  if (threadIdx.x < 8) {
    out[threadIdx.x] = __shfl_sync(0xffu, threadIdx.x, 9);
  }
}

__global__ void two_masks(double* out) {
  out[threadIdx.x] = __shfl_sync(threadIdx.x < 8 ? 0xffu : kAll, threadIdx.x, 0);
}

__global__ void lane_that_ended(double* out) {
  if (threadIdx.x == 5) {
    return;
  }
  out[threadIdx.x] = __shfl_sync(kAll, threadIdx.x, 0);
}

__global__ void not_written(double* out) {
  __shared__ double values[32];
  if (threadIdx.x > 0) {
    values[threadIdx.x] = 1;
  }
  __syncthreads();
  out[threadIdx.x] = values[0];
}

__global__ void missing_barrier(double* out) {
  __shared__ double values[64];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void race_between_blocks(double* out) { out[threadIdx.x] += blockIdx.x; }

__global__ void beyond_dynamic_memory(double* out) {
  dynamic_shared[64 * sizeof(double)] = 1;
  out[threadIdx.x] = 0;
}

__global__ void beyond_the_end(double* out) { out[4096 + threadIdx.x] = 0; }

__global__ void misaligned(double* out) {
  struct alignas(16) Pack {
    double element[2];
  };
  *reinterpret_cast<Pack*>(out + 1 + 2 * threadIdx.x) = Pack{{1, 2}};
}

struct Case {
  const char* name;
  void (*kernel)(double*);
};

constexpr Case kCases[] = {
    {"indices", indices},
    {"votes", votes},
    {"shuffles", shuffles},
    {"masks_of_halves", masks_of_halves},
    {"atomics", atomics},
    {"dynamic_memory", dynamic_memory},
    {"last_block_adds", last_block_adds<true>},
    {"last_block_without_fence", last_block_adds<false>},
    {"divergent_barrier", divergent_barrier},
    {"two_barriers", two_barriers},
    {"mask_without_caller", mask_without_caller},
    {"read_outside_mask", read_outside_mask},
    {"two_masks", two_masks},
    {"lane_that_ended", lane_that_ended},
    {"not_written", not_written},
    {"missing_barrier", missing_barrier},
    {"race_between_blocks", race_between_blocks},
    {"beyond_dynamic_memory", beyond_dynamic_memory},
    {"beyond_the_end", beyond_the_end},
    {"misaligned", misaligned},
};

}  // namespace
}  // namespace metacurv

// Returns: 1 if all went as CUDA wants it, 0 if not (emulation_fault says why), -1 for no such
// name.
extern "C" __attribute__((visibility("default"))) int self_test(const char* name, uint32_t blocks,
                                                                uint32_t threads, double* out) {
  for (const metacurv::Case& each : metacurv::kCases) {
    if (std::strcmp(each.name, name) == 0) {
      cudaLaunchConfig_t config;
      config.gridDim = dim3(blocks);
      config.blockDim = dim3(threads);
      config.dynamicSmemBytes = 64 * sizeof(double);
      return cudaLaunchKernelEx(&config, each.kernel, out) == cudaSuccess ? 1 : 0;
    }
  }
  return -1;
}
