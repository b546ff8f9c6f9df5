// Takes the place of CUDA's header: kernels and launch code compile with g++ and run on the host.
//
// It has what kernels like those in csrc/cuda use and nothing else, so a kernel that uses more does
// not compile until somebody has thought about how to emulate it. What each thread does is in
// emulator.h; how threads and blocks take turns, in emulator.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One copy for each host thread, which runs a block at a time (or swaps copies between blocks).
// Dynamic shared memory has one name: extern __shared__ ... dynamic_shared[], in namespace
// metacurv.
#define __shared__ thread_local

#define threadIdx (emulation::current->thread_index)
#define blockIdx (emulation::current->block_index)
#define __syncthreads() emulation::block_barrier(__FILE__, __LINE__)
#define __syncwarp() emulation::warp_barrier(emulation::kFullWarp, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
  emulation::shuffle_down(mask, value, delta, __FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) emulation::shuffle(mask, value, lane, __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, delta) \
  emulation::shuffle_up(mask, value, delta, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  emulation::shuffle_xor(mask, value, bits, __FILE__, __LINE__)
#define __ballot_sync(mask, value) emulation::ballot(mask, (value) != 0, __FILE__, __LINE__)
#define __any_sync(mask, value) (__ballot_sync(mask, value) != 0 ? 1 : 0)
#define __all_sync(mask, value) (__ballot_sync(mask, (value) == 0) == 0 ? 1 : 0)
#define __threadfence() emulation::fence()

// No macros, for gridDim and blockDim are also what a launch is configured by.
inline constexpr struct {
  struct {
    operator uint32_t() const { return emulation::current->grid->blocks; }
  } x;
} gridDim;
inline constexpr struct {
  struct {
    operator uint32_t() const { return emulation::current->grid->threads; }
  } x;
} blockDim;

template <typename To, typename From>
inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return emulated_bits<double>(bits); }
inline int __double2hiint(double value) {
  return static_cast<int>(emulated_bits<uint64_t>(value) >> 32);
}
inline int __double2loint(double value) { return static_cast<int>(emulated_bits<uint64_t>(value)); }
inline double __hiloint2double(int high, int low) {
  return emulated_bits<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                               static_cast<uint32_t>(low));
}

template <typename T, typename U>
inline T atomicAdd(T* address, U value) {
  return emulation::atomic_update(address, [=](T now) { return static_cast<T>(now + value); });
}
template <typename T, typename U>
inline T atomicMax(T* address, U value) {
  return emulation::atomic_update(address, [=](T now) { return now < value ? value : now; });
}
template <typename T, typename U, typename V>
inline T atomicCAS(T* address, U expected, V value) {
  return emulation::atomic_update(
      address, [=](T now) { return now == expected ? static_cast<T>(value) : now; });
}

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return emulation::fault(); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "CUDA's room for kernel parameters");
  const auto body = [&] { kernel(Parameters(arguments)...); };
  const auto run = [](const void* of) { (*static_cast<const decltype(body)*>(of))(); };
  return emulation::run_grid({config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes}, run,
                             &body)
             ? cudaSuccess
             : cudaErrorLaunchFailure;
}
