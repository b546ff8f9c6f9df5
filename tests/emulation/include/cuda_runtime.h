// Takes the place of CUDA's header: kernels and launch code compile with g++ and run on the host.
//
// It has what the kernels in csrc/cuda use and nothing else, so a kernel that uses more does not
// compile until somebody has thought about how to emulate it. What each thread does is in
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
#define __shared__ static thread_local

#define threadIdx (emulation::current->thread_index)
#define blockIdx (emulation::current->block_index)
#define __syncthreads() emulation::block_barrier(__FILE__, __LINE__)
#define __syncwarp() emulation::warp_barrier(emulation::kFullWarp, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
  emulation::shuffle_down(mask, value, delta, __FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) emulation::shuffle(mask, value, lane, __FILE__, __LINE__)

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
inline long long __double_as_longlong(double value) { return emulated_bits<long long>(value); }
inline int __double2hiint(double value) {
  return static_cast<int>(emulated_bits<uint64_t>(value) >> 32);
}
inline int __double2loint(double value) { return static_cast<int>(emulated_bits<uint64_t>(value)); }
inline double __hiloint2double(int high, int low) {
  return emulated_bits<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                               static_cast<uint32_t>(low));
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
  return emulation::run_grid({config->gridDim.x, config->blockDim.x}, run, &body)
             ? cudaSuccess
             : cudaErrorLaunchFailure;
}
