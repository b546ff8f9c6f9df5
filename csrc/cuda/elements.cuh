// The four element types of the list ops: how a kernel reads them (Bits), adds them (Sum) and
// writes +1 (kOne).
#pragma once

#include <cstdint>

namespace metacurv {

// cuda_fp16.h has the same instruction in a function, and warnings where clang++ is nvcc's host
// compiler.
#if defined(__CUDACC__)
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#else
float half_to_float(uint16_t bits);  // an emulation brings its own
#endif

struct Float32 {
  using Bits = uint32_t;
  using Sum = float;
  static constexpr Bits kOne = 0x3f800000u;
  static __device__ __forceinline__ Sum widen(Bits bits) { return __uint_as_float(bits); }
};

struct Float64 {
  using Bits = uint64_t;
  using Sum = double;
  static constexpr Bits kOne = 0x3ff0000000000000u;
  static __device__ __forceinline__ Sum widen(Bits bits) {
    return __longlong_as_double(static_cast<long long>(bits));
  }
};

struct Float16 {
  using Bits = uint16_t;
  using Sum = float;
  static constexpr Bits kOne = 0x3c00u;
  static __device__ __forceinline__ Sum widen(Bits bits) { return half_to_float(bits); }
};

struct BFloat16 {
  using Bits = uint16_t;
  using Sum = float;
  static constexpr Bits kOne = 0x3f80u;
  static __device__ __forceinline__ Sum widen(Bits bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
};

// What one lane reads or writes at a time: 16 bytes, 2, 4 or 8 elements.
template <typename Bits>
struct alignas(16) Pack {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(Bits));
  Bits element[kElements];
};

// value or -value by the top bit of `sign`; its other bits may hold anything.
__device__ __forceinline__ float flip(float value, uint32_t sign) {
  return __uint_as_float(__float_as_uint(value) ^ (sign & 0x80000000u));
}

__device__ __forceinline__ double flip(double value, uint32_t sign) {
  const int high = __double2hiint(value) ^ static_cast<int>(sign & 0x80000000u);
  return __hiloint2double(high, __double2loint(value));
}

// +1 or -1 by the lowest bit of `sign`; its other bits may hold anything.
template <typename Element>
__device__ __forceinline__ typename Element::Bits signed_one(uint32_t sign) {
  using Bits = typename Element::Bits;
  constexpr int kSignBit = 8 * static_cast<int>(sizeof(Bits)) - 1;
  return static_cast<Bits>(Element::kOne | (static_cast<Bits>(sign & 1u) << kSignBit));
}

}  // namespace metacurv
