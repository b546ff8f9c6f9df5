// The element formulas of step_direction_ and move_, one text for CPU and CUDA.
#pragma once

#include <cstdint>

#include "philox.h"  // METACURV_HOST_DEVICE

namespace metacurv {

// Real: float or double, or a vector of them, by reference because wide vectors passed by value
// would need AVX in the caller. Neither formula may be contracted to a fused multiply-add.

// The step that `lr` was multiplied with: (keep before - after) / lr.
template <typename Scalar>
struct StepDirection {
  Scalar keep;
  Scalar lr;

  template <typename Real>
  METACURV_HOST_DEVICE void operator()(const Real& before, const Real& after, Real& out) const {
    out = (keep * before - after) / lr;
  }
};

template <typename Scalar>
struct Move {
  Scalar distance;

  template <typename Real>
  METACURV_HOST_DEVICE void operator()(const Real& start, const Real& direction, Real& out) const {
    out = start + distance * direction;
  }
};

// NaN and the infinities have no difference to themselves.
template <typename Real>
METACURV_HOST_DEVICE bool is_not_finite(Real x) {
  return !(x - x == Real{0});
}

// The bits of a float, rounded to those of the nearest bfloat16, ties to even.
METACURV_HOST_DEVICE uint16_t nearest_bf16(uint32_t bits) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > kInfinity ? 0x7fc0u : rounded);
}

}  // namespace metacurv
