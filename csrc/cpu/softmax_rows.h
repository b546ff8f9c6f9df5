// Random cotangents of softmax cross-entropy, on plain memory.
#pragma once

#include <cstdint>

#include "../philox.h"

namespace metacurv {

// u = root (t - t^2 sum_c t) with t = sqrt_p e, a row at a time, for the signs e of each probe.
// sqrt_p: [rows, cols]; root: [rows]; u: [n_probes, rows, cols]; stream: of the first probe.
void softmax_rows(const float* sqrt_p, const float* root, const SignStream& stream, int64_t rows,
                  int64_t cols, int64_t n_probes, float* u);

}  // namespace metacurv
