// The arguments every list op shares, checked once and turned into plain structs for the kernels.
//
// `tensors`: T dense tensors of any shape; `numbers`: [T] parameter numbers; `offsets`: [T] index
// of each tensor's first element in its unsharded parameter; `probe`: 0-dim int64 on the same
// device. The Python layer (metacurv/ops) raises the friendly errors; these checks guard direct
// callers of torch.ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace metacurv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dense tensor as a kernel sees it; `sizes` and `strides` have adjacent dimensions merged where
// memory allows, outermost first, so a contiguous tensor has one dimension of stride 1.
struct TensorView {
  void* data;
  ScalarType dtype;
  int64_t numel;
  int64_t offset;
  uint32_t number;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;

  bool is_contiguous() const { return sizes.size() == 1 && strides[0] == 1; }
};

inline bool is_supported(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Drops dimensions of size 1 and merges neighbours that are laid out as one.
inline void collapse_dimensions(TensorView& view, const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) {
      continue;
    }
    if (!view.sizes.empty() && view.strides.back() == strides[d] * sizes[d]) {
      view.sizes.back() *= sizes[d];
      view.strides.back() = strides[d];
    } else {
      view.sizes.push_back(sizes[d]);
      view.strides.push_back(strides[d]);
    }
  }
  if (view.sizes.empty() || view.numel == 0) {
    view.sizes = {view.numel};
    view.strides = {1};
  }
}

inline void check_scalar(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.numel() == 1 && tensor.scalar_type() == dtype, "metacurv: ", name,
                  " must hold one element of scalar type ", static_cast<int>(dtype), ", got ",
                  tensor.numel(), " elements of scalar type ",
                  static_cast<int>(tensor.scalar_type()));
}

inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline std::vector<TensorView> make_views(const std::vector<Tensor>& tensors,
                                          const std::vector<int64_t>& numbers,
                                          const std::vector<int64_t>& offsets) {
  STD_TORCH_CHECK(numbers.size() == tensors.size(),
                  "metacurv: numbers must have one entry per tensor, got ", numbers.size(), " for ",
                  tensors.size());
  STD_TORCH_CHECK(offsets.size() == tensors.size(),
                  "metacurv: offsets must have one entry per tensor, got ", offsets.size(), " for ",
                  tensors.size());
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Tensor& tensor = tensors[t];
    const ScalarType dtype = tensor.scalar_type();
    STD_TORCH_CHECK(is_supported(dtype), "metacurv: tensors[", t,
                    "] must be float32, float64, float16 or bfloat16, got scalar type ",
                    static_cast<int>(dtype));
    STD_TORCH_CHECK(on_one_device(tensor, tensors[0]), "metacurv: tensors[", t,
                    "] must be on the device of tensors[0]");
    STD_TORCH_CHECK(numbers[t] >= 0 && numbers[t] <= std::numeric_limits<uint32_t>::max(),
                    "metacurv: numbers[", t, "] must be in [0, 2^32), got ", numbers[t]);
    STD_TORCH_CHECK(offsets[t] >= 0 && offsets[t] < (int64_t{1} << 62), "metacurv: offsets[", t,
                    "] must be in [0, 2^62), got ", offsets[t]);
    TensorView view{tensor.data_ptr(),
                    dtype,
                    tensor.numel(),
                    offsets[t],
                    static_cast<uint32_t>(numbers[t]),
                    {},
                    {}};
    collapse_dimensions(view, tensor);
    views.push_back(std::move(view));
  }
  return views;
}

inline uint32_t check_probe(int64_t probe) {
  STD_TORCH_CHECK(probe >= 0 && probe <= std::numeric_limits<uint32_t>::max(),
                  "metacurv: probe must be in [0, 2^32), got ", probe);
  return static_cast<uint32_t>(probe);
}

// The same with the probe number in memory, which has to be on the tensors' device.
inline std::vector<TensorView> make_views(const std::vector<Tensor>& tensors, const Tensor& probe,
                                          const std::vector<int64_t>& numbers,
                                          const std::vector<int64_t>& offsets) {
  check_scalar(probe, "probe", ScalarType::Long);
  STD_TORCH_CHECK(tensors.empty() || on_one_device(tensors[0], probe),
                  "metacurv: tensors and probe must be on one device");
  return make_views(tensors, numbers, offsets);
}

// mean, m2: [T + 1] contiguous float64, the last entry for the sum over all tensors; count: int64.
inline void check_statistics(const Tensor& mean, const Tensor& m2, const Tensor& count,
                             const Tensor& probe, size_t n) {
  const int64_t entries = static_cast<int64_t>(n) + 1;
  for (const auto& [tensor, name] : {std::pair<const Tensor&, const char*>{mean, "mean"},
                                     std::pair<const Tensor&, const char*>{m2, "m2"}}) {
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == entries && tensor.is_contiguous() &&
                        tensor.scalar_type() == ScalarType::Double,
                    "metacurv: ", name, " must be a contiguous float64 tensor of ", entries,
                    " elements (one per tensor and the total)");
  }
  check_scalar(count, "count", ScalarType::Long);
  for (const Tensor& tensor : {mean, m2, count}) {
    STD_TORCH_CHECK(on_one_device(tensor, probe),
                    "metacurv: mean, m2, count and probe must be on one device");
  }
}

}  // namespace metacurv
