// The reciprocal rule with its guards, one text for CPU and CUDA:
// scale = 1 / (1 + alpha max(trace, 0)).
#pragma once

#include <cmath>

#include "philox.h"  // METACURV_HOST_DEVICE

namespace metacurv {

// The smallest scale the rule gives, 2^-40, so that a learning rate times it stays positive in
// float32.
constexpr double kMinScale = 0x1p-40;

// A trace that is not finite leaves `previous` as it was; the result is always in [kMinScale, 1].
METACURV_HOST_DEVICE double reciprocal_scale(double previous, double trace, double alpha) {
  const double kept = previous >= kMinScale && previous <= 1.0 ? previous : 1.0;
  if (!std::isfinite(trace)) {
    return kept;
  }
  const double scale = 1.0 / (1.0 + alpha * (trace > 0.0 ? trace : 0.0));
  return scale > kMinScale ? scale : kMinScale;
}

}  // namespace metacurv
