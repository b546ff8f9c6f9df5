// What softmax_factor does, on plain memory.
#pragma once

#include <cstdint>

#include "../philox.h"

namespace metacurv {

// sqrt_p: [rows, cols]; root: [rows]; u: [n_probes, rows, cols]; stream: of the first probe.
void softmax_rows(const float* sqrt_p, const float* root, const SignStream& stream, int64_t rows,
                  int64_t cols, int64_t n_probes, float* u);

}  // namespace metacurv
