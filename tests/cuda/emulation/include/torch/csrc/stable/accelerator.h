// No device to make current.
#pragma once

#include_next <torch/csrc/stable/accelerator.h>

namespace torch::stable::accelerator {

struct NoDeviceGuard {
  explicit NoDeviceGuard(DeviceIndex) {}
  ~NoDeviceGuard() {}  // keeps compilers from calling it unused
};

}  // namespace torch::stable::accelerator

#define DeviceGuard NoDeviceGuard
