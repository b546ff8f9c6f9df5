// Eight float64 lanes in the compiler's own vector types: one source for every instruction set.
//
// Functions here are inlined into callers with METACURV_WIDE, for kWidth = 4 lanes a register, and
// without, for kWidth = 2. (A compiler left to split wider vectors itself moves them through
// memory.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "simd.h"

#define METACURV_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define METACURV_WIDE __attribute__((target("avx2")))
#else
#define METACURV_WIDE
#endif

namespace metacurv {

constexpr int64_t kEight = 8;
constexpr int kNarrow = 2;
constexpr int kWide = 4;

// Whether functions with METACURV_WIDE may run. AVX-512 would gain little: these loops wait for
// memory, or are too short for it.
inline bool runs_wide() {
  static const bool wide = std::string(simd().name) != simd_baseline().name;
  return wide;
}

template <typename T, int64_t kCount>
struct Vector {
  using type [[gnu::vector_size(kCount * sizeof(T))]] = T;
};
template <typename T, int64_t kCount>
using VectorOf = typename Vector<T, kCount>::type;

template <int kWidth>
struct Eight {
  static constexpr int kParts = kEight / kWidth;
  using Part = VectorOf<double, kWidth>;
  using Mask = VectorOf<int64_t, kWidth>;
  Part part[kParts];

  METACURV_INLINE void clear() {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      part[i] = Part{};
    }
  }

  template <typename T>
  METACURV_INLINE void load(const T* x) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const T* y = x + i * kWidth;
      if constexpr (std::is_same_v<T, double>) {
        std::memcpy(&part[i], y, sizeof part[i]);
      } else if constexpr (kWidth == kWide) {  // gcc 12 makes less of __builtin_convertvector
        part[i] = Part{y[0], y[1], y[2], y[3]};
      } else {
        part[i] = Part{y[0], y[1]};
      }
    }
  }

  // x[0 ... n) and zeros. Memory before `end` may be read: short rows are read with their
  // neighbours, because a copy would have to be waited for.
  template <typename T>
  METACURV_INLINE void load_first(const T* x, int64_t n, const T* end) {
    static constexpr int64_t kMasks[2 * kEight] = {-1, -1, -1, -1, -1, -1, -1, -1};
    if (end - x >= kEight) {
      load(x);
    } else {
      T padded[kEight] = {};
      std::copy_n(x, n, padded);
      load(padded);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      Mask mask;
      std::memcpy(&mask, kMasks + (kEight - n) + i * kWidth, sizeof mask);
      part[i] = reinterpret_cast<Part>(reinterpret_cast<Mask>(part[i]) & mask);
    }
  }

  METACURV_INLINE void add(const Eight& x) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      part[i] += x.part[i];
    }
  }

  METACURV_INLINE void add_product(const Eight& x, const Eight& y) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      part[i] += x.part[i] * y.part[i];
    }
  }

  METACURV_INLINE void add_product(double x, const Eight& y) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      part[i] += x * y.part[i];
    }
  }

  // The sum of the lanes, the second half added to the first until one is left.
  METACURV_INLINE double halved() const {
    if constexpr (kParts == 2) {
      const Part four = part[0] + part[1];
      return (four[0] + four[2]) + (four[1] + four[3]);
    } else {
      const Part two = (part[0] + part[2]) + (part[1] + part[3]);
      return two[0] + two[1];
    }
  }
};

}  // namespace metacurv
