// float16 and bfloat16 by integer arithmetic without branches, which compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "../step_line.h"
#include "eight.h"  // METACURV_INLINE

namespace metacurv {

METACURV_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

METACURV_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

METACURV_INLINE float widen_bf16(uint16_t bits) {
  return float_of(static_cast<uint32_t>(bits) << 16);
}

METACURV_INLINE uint16_t round_bf16(float value) { return nearest_bf16(bits_of(value)); }

METACURV_INLINE float widen_f16(uint16_t bits) {
  constexpr uint32_t kRebias = 112u << 23;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t subnormal =
      bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t finite = magnitude < 0x0400u ? subnormal : shifted + kRebias;
  return float_of(sign | (magnitude < 0x7c00u ? finite : shifted | 0x7f800000u));
}

// To the nearest, ties to even.
METACURV_INLINE uint16_t round_f16(float value) {
  constexpr uint32_t kRebias = 112u << 10;
  constexpr uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
  constexpr uint32_t kOverflow = 0x477ff000u;        // 65520, from where on infinity is nearest
  constexpr uint32_t kHalf = 0x3f000000u;            // 0.5, whose last bit is 2^-24
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5F) - kHalf;
  const uint32_t normal = ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - kRebias;
  const uint32_t finite = magnitude < kSmallestNormal ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude < kOverflow ? finite : special));
}

}  // namespace metacurv
