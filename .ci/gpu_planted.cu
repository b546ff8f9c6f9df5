// A fault for each tool of compute-sanitizer to find, in our namespace, by which .ci/gpu tells it
// what to look at: if it does not find them here, what it says of the ops means nothing.
#include <cstdio>
#include <cstring>

namespace metacurv {

__global__ void writes_beyond(int* x, int n) { x[n + threadIdx.x] = 1; }

__global__ void races(int* x) {
  __shared__ int shared[64];
  shared[threadIdx.x] = x[threadIdx.x];
  // __syncthreads() is missing.
  x[threadIdx.x] = shared[63 - threadIdx.x];
}

}  // namespace metacurv

int main(int argc, char** argv) {
  int* x = nullptr;
  cudaMalloc(&x, 64 * sizeof(int));
  if (argc == 2 && std::strcmp(argv[1], "racecheck") == 0) {
    metacurv::races<<<1, 64>>>(x);
  } else {
    metacurv::writes_beyond<<<1, 64>>>(x, 64);
  }
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
