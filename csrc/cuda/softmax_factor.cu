// softmax_factor for CUDA tensors: one launch.
#include "softmax_factor.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../softmax_factor.h"
#include "launch.h"

namespace metacurv {
namespace {

template <typename T>
void launch_factor(const Tensor& sqrt_p, const Tensor& root, const SignSource& source,
                   uint32_t number, Tensor& u) {
  FactorArguments<T> arguments{};
  arguments.sqrt_p = sqrt_p.const_data_ptr<T>();
  arguments.root = root.const_data_ptr<T>();
  arguments.u = u.mutable_data_ptr<T>();
  arguments.draws = u.size(0);
  arguments.rows = u.size(1);
  arguments.cols = u.size(2);
  arguments.source = source;
  arguments.number = number;
  const bool is_long = arguments.cols >= kLongRow;
  const int64_t teams = is_long ? 1 : kFactorWarps;
  const int64_t blocks = (arguments.draws * arguments.rows + teams - 1) / teams;
  constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();  // CUDA's limit of a grid
  STD_TORCH_CHECK(blocks <= kMostBlocks, "metacurv: softmax_factor of ", u.size(0), " x ",
                  u.size(1), " rows is too large for one launch");
  const auto kernel =
      is_long ? softmax_factor_kernel<T, kFactorWarps> : softmax_factor_kernel<T, 1>;
  CudaScope(sqrt_p).launch("softmax_factor", kernel, static_cast<uint32_t>(blocks), kFactorThreads,
                           arguments);
}

// sqrt_p: [M, C], root: [M] -> [n_probes, M, C].
Tensor softmax_factor(const Tensor& sqrt_p, const Tensor& root, int64_t seed, const Tensor& probe,
                      int64_t number, int64_t n_probes) {
  check_softmax_factor(sqrt_p, root, number, n_probes);
  check_scalar(probe, "probe", ScalarType::Long);
  STD_TORCH_CHECK(on_one_device(sqrt_p, probe), "metacurv: sqrt_p and probe must be on one device");
  Tensor u = torch::stable::new_empty(sqrt_p, {n_probes, sqrt_p.size(0), sqrt_p.size(1)});
  if (u.numel() > 0) {
    const SignSource source = {static_cast<uint64_t>(seed), probe.const_data_ptr<int64_t>()};
    (sqrt_p.scalar_type() == ScalarType::Float
         ? launch_factor<float>
         : launch_factor<double>)(packed(sqrt_p), packed(root), source,
                                  static_cast<uint32_t>(number), u);
  }
  return u;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CUDA, m) {
  m.impl("softmax_factor", TORCH_BOX(&softmax_factor));
}

}  // namespace metacurv
