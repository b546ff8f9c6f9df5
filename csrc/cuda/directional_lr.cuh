// Kernel of directional_lr_: a few numbers, by one thread.
//
// Compiled for sm_75 ... sm_120 with 0 spills and emulated on a CPU; never run on a GPU.
#pragma once

#include "../directional_lr.h"

namespace metacurv {

// Grid: one block of one thread.
__global__ void __launch_bounds__(1)
    directional_lr_kernel(double* scales, double* shared, const double* reading, std::int64_t n,
                          double sigma, double kappa, double beta, bool searching) {
  directional_lr(scales, shared, reading, n, sigma, kappa, beta, searching);
}

}  // namespace metacurv
