// Launches kernels where torch would: on the tensors' device, on torch's current stream, without
// waiting.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// Lives in libtorch_cuda; weak, so that a CPU-only torch loads the same binary. (The stable ABI
// offers the handle of the current stream only from torch 2.13 on.)
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace metacurv {

// While it lives, the tensor's device is current.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {}

  // `op` is for the error message. A graph being captured records the launch instead of running it.
  template <typename... Parameters, typename... Arguments>
  void launch(const char* op, void (*kernel)(Parameters...), uint32_t blocks, uint32_t threads,
              const Arguments&... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream_;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would report this error again
      STD_TORCH_CHECK(false, "metacurv: the CUDA kernel of ", op, " could not be launched (",
                      blocks, " blocks of ", threads, " threads): ", cudaGetErrorString(error));
    }
  }

 private:
  static cudaStream_t current_stream(int32_t device_index) {
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                    "metacurv: CUDA tensors need a torch with CUDA; libtorch_cuda is not loaded");
    void* stream = nullptr;
    // STABLE_TORCH_ERROR_CODE_CHECK came after torch 2.10, whose headers must do.
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream) == 0,
                    "metacurv: torch gave no current CUDA stream for device ", device_index);
    return static_cast<cudaStream_t>(stream);
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace metacurv
