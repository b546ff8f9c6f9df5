// Portable look-ups, and the choice between them and the AVX-512 ones.
#include "sign_tables.h"

#include <string>

#include "simd.h"

namespace metacurv {
namespace {

void make_tables(const float* x, int64_t n, float* tables) {
  for (int64_t g = 0; g < n; ++g, x += kGroup, tables += kTable) {
    for (int64_t m = 0; m < kTable; ++m) {
      float sum = (m & 1) != 0 ? -x[0] : x[0];
      sum += (m & 2) != 0 ? -x[1] : x[1];
      sum += (m & 4) != 0 ? -x[2] : x[2];
      sum += (m & 8) != 0 ? -x[3] : x[3];
      tables[m] = sum;
    }
  }
}

void interleave(const uint16_t* runs, uint8_t* indices) {
  for (int64_t j = 0; j < kLanes; ++j) {
    int index = 0;
    for (int64_t k = 0; k < kGroup; ++k) {
      index |= ((runs[k] >> j) & 1) << k;
    }
    indices[j] = static_cast<uint8_t>(index);
  }
}

void look_up(const float* tables, int64_t table_stride, const uint8_t* indices, int64_t groups,
             float* sums) {
  for (int64_t r = 0; r < kRowBlock; ++r) {
    const float* row = tables + r * table_stride;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = 0; j < kLanes; ++j) {
        sums[r * kLanes + j] += row[g * kTable + indices[g * kLanes + j]];
      }
    }
  }
}

}  // namespace

const SignTableKernels& sign_tables_baseline() {
  static const SignTableKernels kernels = {"baseline", make_tables, interleave, look_up};
  return kernels;
}

const SignTableKernels& sign_tables() {
  static const SignTableKernels& kernels = []() -> const SignTableKernels& {
    const SignTableKernels* avx512 = sign_tables_avx512();
    const bool wanted = avx512 != nullptr && std::string(simd().name) == avx512->name;
    return wanted ? *avx512 : sign_tables_baseline();
  }();
  return kernels;
}

}  // namespace metacurv
