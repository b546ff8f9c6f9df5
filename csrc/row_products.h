// The arguments of row_products, checked for CPU and CUDA.
#pragma once

#include "tensor_list.h"

namespace metacurv {

// a: [N, I]; u, w: [R, N, O]; float32 or float64 all, on one device.
inline void check_row_products(const Tensor& a, const Tensor& u, const Tensor& w) {
  const ScalarType dtype = a.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "metacurv: a must be float32 or float64, got scalar type ",
                  static_cast<int>(dtype));
  STD_TORCH_CHECK(a.dim() == 2, "metacurv: a must be a matrix, got ", a.dim(), " dimensions");
  STD_TORCH_CHECK(u.dim() == 3 && u.size(1) == a.size(0),
                  "metacurv: u must be [R, N, O] with N = ", a.size(0), ", the rows of a");
  STD_TORCH_CHECK(
      w.dim() == 3 && w.size(0) == u.size(0) && w.size(1) == u.size(1) && w.size(2) == u.size(2),
      "metacurv: w must have the shape of u");
  for (const auto& [tensor, name] : {std::pair<const Tensor&, const char*>{u, "u"},
                                     std::pair<const Tensor&, const char*>{w, "w"}}) {
    STD_TORCH_CHECK(tensor.scalar_type() == dtype && on_one_device(tensor, a), "metacurv: ", name,
                    " must be of a's dtype and on its device");
  }
}

}  // namespace metacurv
