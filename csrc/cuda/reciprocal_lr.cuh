// Kernel of reciprocal_lr_: the reciprocal rule on one number, by one thread.
#pragma once

#include "../reciprocal_lr.h"

namespace metacurv {

// Scale, Trace: float or double. Grid: one block of one thread.
template <typename Scale, typename Trace>
__global__ void __launch_bounds__(1)
    reciprocal_lr_kernel(Scale* scale, const Trace* trace, double alpha) {
  *scale = static_cast<Scale>(
      reciprocal_scale(static_cast<double>(*scale), static_cast<double>(*trace), alpha));
}

}  // namespace metacurv
