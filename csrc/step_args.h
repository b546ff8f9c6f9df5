// Argument checks of step_direction_ and move_, shared by CPU and CUDA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "tensor_list.h"

namespace metacurv {

struct NamedList {
  const char* name;
  const std::vector<Tensor>& tensors;
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) {
    return false;
  }
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) {
      return false;
    }
  }
  return true;
}

// Whether no two elements share memory: every stride clears what lies within it.
inline bool owns_elements(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1) {
      dimensions.emplace_back(tensor.stride(d), tensor.size(d));
    }
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dimensions) {
    if (stride <= reach) {
      return tensor.numel() == 0;
    }
    reach += stride * (size - 1);
  }
  return true;
}

// Tensor t of `written`, `x` and `y` has one shape, dtype and device, a supported dtype, and may be
// written to in `written`.
inline void check_lists(const NamedList& written, const NamedList& x, const NamedList& y) {
  const size_t n = written.tensors.size();
  for (const NamedList& list : {x, y}) {
    STD_TORCH_CHECK(list.tensors.size() == n, "metacurv: ", list.name,
                    " must have one tensor for each of ", written.name, ", got ",
                    list.tensors.size(), " for ", n);
  }
  for (size_t t = 0; t < n; ++t) {
    const Tensor& like = written.tensors[t];
    const ScalarType dtype = like.scalar_type();
    STD_TORCH_CHECK(is_supported(dtype), "metacurv: ", written.name, "[", t,
                    "] must be float32, float64, float16 or bfloat16, got scalar type ",
                    static_cast<int>(dtype));
    STD_TORCH_CHECK(on_one_device(like, written.tensors[0]), "metacurv: ", written.name, "[", t,
                    "] must be on the device of ", written.name, "[0]");
    STD_TORCH_CHECK(like.is_contiguous() || owns_elements(like), "metacurv: ", written.name, "[", t,
                    "] must own each of its elements");
    for (const NamedList& list : {x, y}) {
      const Tensor& tensor = list.tensors[t];
      STD_TORCH_CHECK(
          same_shape(tensor, like) && tensor.scalar_type() == dtype && on_one_device(tensor, like),
          "metacurv: ", list.name, "[", t, "] must have the shape, dtype and device of ",
          written.name, "[", t, "]");
    }
  }
}

inline void check_keep(const std::vector<double>& keep, size_t n) {
  STD_TORCH_CHECK(keep.size() == n, "metacurv: keep must have one entry per tensor, got ",
                  keep.size(), " for ", n);
  for (size_t t = 0; t < n; ++t) {
    STD_TORCH_CHECK(std::isfinite(keep[t]), "metacurv: keep[", t, "] must be finite, got ",
                    keep[t]);
  }
}

// A number in memory, which has to be where the tensors are.
inline void check_number(const Tensor& number, const char* name,
                         const std::vector<Tensor>& tensors) {
  check_scalar(number, name, ScalarType::Double);
  STD_TORCH_CHECK(tensors.empty() || on_one_device(tensors[0], number), "metacurv: ", name,
                  " must be on the tensors' device");
}

// A call without tensors has no device to run on: it takes its number in memory.
inline void check_not_empty(const std::vector<Tensor>& tensors, const char* name) {
  STD_TORCH_CHECK(!tensors.empty(), "metacurv: ", name,
                  " must be a tensor where the lists of tensors are empty");
}

inline void check_lr(double lr) {
  STD_TORCH_CHECK(std::isfinite(lr) && lr > 0, "metacurv: lr must be finite and > 0, got ", lr);
}

inline void check_distance(double distance) {
  STD_TORCH_CHECK(std::isfinite(distance), "metacurv: distance must be finite, got ", distance);
}

}  // namespace metacurv
