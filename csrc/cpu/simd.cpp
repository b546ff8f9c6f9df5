#include "simd.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace metacurv {
namespace {

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know "f16c", so the CPU is asked directly.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

const SimdTable* runnable_avx2() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    return simd_avx2();
  }
#endif
  return nullptr;
}

const SimdTable* runnable_avx512() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_f16c()) {
    return simd_avx512();
  }
#endif
  return nullptr;
}

const SimdTable& choose() {
  const char* forced = std::getenv("METACURV_CPU_ISA");
  const std::string wanted = forced == nullptr ? "" : forced;
  const SimdTable* avx512 = runnable_avx512();
  const SimdTable* avx2 = runnable_avx2();
  if (wanted.empty()) {
    return avx512 != nullptr ? *avx512 : avx2 != nullptr ? *avx2 : simd_baseline();
  }
  for (const SimdTable* table : {avx512, avx2, &simd_baseline()}) {
    if (table != nullptr && wanted == table->name) {
      return *table;
    }
  }
  STD_TORCH_CHECK(
      false, "METACURV_CPU_ISA must be baseline, avx2 or avx512 and run on this CPU, got ", wanted);
}

}  // namespace

const SimdTable& simd() {
  static const SimdTable& table = choose();
  return table;
}

}  // namespace metacurv
