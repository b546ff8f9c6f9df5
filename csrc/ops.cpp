// The schemas of metacurv's ops, each written once, and the Python module metacurv._C.
//
// Importing metacurv._C registers the ops under torch.ops.metacurv. No torch type crosses pybind11,
// and the ops use libtorch's stable ABI only, so one binary runs on every torch from 2.10 on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdint>
#include <string>

#include "cpu/simd.h"
#include "philox.h"

#ifndef METACURV_VERSION
#error "setup.py passes METACURV_VERSION"
#endif
#ifndef METACURV_CUDA_ARCHS
#define METACURV_CUDA_ARCHS ""
#endif
#ifndef METACURV_CUDA_VERSION
#define METACURV_CUDA_VERSION ""
#endif

// tensors, products: T tensors; numbers, offsets: [T]; probe, count: 0-dim int64; mean, m2: [T + 1]
// float64. The overloads `number` (CPU only) take the probe as a number: making a tensor of it
// costs as much as filling a few thousand elements. Signs follow the contract in philox.h. The
// Python docstrings (metacurv/ops) give the formulas.
STABLE_TORCH_LIBRARY(metacurv, m) {
  m.def(
      "rademacher_(Tensor(a!)[] tensors, int seed, Tensor probe, int[] numbers, int[] offsets) -> "
      "()");
  m.def(
      "rademacher_.number(Tensor(a!)[] tensors, int seed, int probe, int[] numbers, int[] offsets) "
      "-> ()");
  m.def(
      "signed_sum.number(Tensor[] tensors, int seed, int probe, int[] numbers, int[] offsets) -> "
      "Tensor");
  m.def(
      "signed_sum(Tensor[] tensors, int seed, Tensor probe, int[] numbers, int[] offsets) -> "
      "Tensor");
  m.def(
      "hutchinson_accumulate_(Tensor(a!) mean, Tensor(b!) m2, Tensor(c!) count, Tensor[] products, "
      "int seed, Tensor probe, int[] numbers, int[] offsets) -> ()");
  m.def(
      "chain_draws(Tensor log_p, Tensor sample_weight, int seed, int probe, int n_probes, Tensor[] "
      "inputs, Tensor[] weights, Tensor[] slopes, bool[] rectified) -> Tensor");
  m.def(
      "chain_columns(Tensor log_p, Tensor sample_weight, int start, int stop, Tensor[] inputs, "
      "Tensor[] weights, Tensor[] slopes, bool[] rectified) -> Tensor");
  m.def("reciprocal_lr_(Tensor(a!) scale, Tensor trace, float alpha) -> ()");
}

namespace {

namespace py = pybind11;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

bool cuda_compiled() {
#if defined(METACURV_WITH_CUDA)
  return true;
#else
  return false;
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = METACURV_VERSION;
  info["compiler"] = compiler();
  info["cpp_standard"] = static_cast<int64_t>(__cplusplus);
  info["torch_target"] = "2.10";
  info["cpu_isa"] = metacurv::simd().name;
  info["cuda_compiled"] = cuda_compiled();
  info["cuda_version"] = METACURV_CUDA_VERSION;
  info["cuda_archs"] = METACURV_CUDA_ARCHS;
  return info;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const metacurv::PhiloxBlock block = metacurv::philox4x32_10(
      {{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of metacurv; importing it registers torch.ops.metacurv.*";
  m.def("build_info", &build_info, "How this binary was built and which instruction set it uses.");
  m.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
        "One Philox4x32-10 block: counter [4], key [2] -> output [4], all uint32.");
}
