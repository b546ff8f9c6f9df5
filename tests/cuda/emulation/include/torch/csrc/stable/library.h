// The host entries register as CPU kernels of a library beside the real one, whose schemas Python
// copies before this one is loaded.
#pragma once

#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) \
  _STABLE_TORCH_LIBRARY_IMPL(metacurv_emulated, CPU, m, C10_UID)
