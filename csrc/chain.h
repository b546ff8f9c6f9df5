// The arguments of chain_draws and chain_columns, checked.
#pragma once

#include <vector>

#include "tensor_list.h"

namespace metacurv {

// A stack of layers between a softmax and the data, from the top, float32 all. L inputs [N, I];
// L - 1 weights [O, I] and what follows them, slopes [N, I]: of the elementwise function below a
// layer, or where `rectified` its result, which is positive where its slope is 1.
struct Chain {
  std::vector<Tensor> inputs;
  std::vector<Tensor> weights;
  std::vector<Tensor> slopes;
  std::vector<bool> rectified;
};

// log_p: [N, C], C the outputs of the first layer; sample_weight: [N], or [1] for all.
inline void check_chain(const Tensor& log_p, const Tensor& sample_weight, const Chain& chain) {
  STD_TORCH_CHECK(log_p.dim() == 2 && log_p.scalar_type() == ScalarType::Float,
                  "metacurv: log_p must be a float32 matrix");
  const int64_t rows = log_p.size(0);
  STD_TORCH_CHECK(sample_weight.dim() == 1 && sample_weight.scalar_type() == ScalarType::Float &&
                      (sample_weight.size(0) == rows || sample_weight.size(0) == 1),
                  "metacurv: sample_weight must be float32 of shape [1] or [", rows, "]");
  const size_t layers = chain.inputs.size();
  STD_TORCH_CHECK(layers > 0, "metacurv: inputs must hold one tensor a layer, got none");
  STD_TORCH_CHECK(chain.weights.size() + 1 == layers && chain.slopes.size() + 1 == layers &&
                      chain.rectified.size() + 1 == layers,
                  "metacurv: weights, slopes and rectified must have one entry fewer than the ",
                  layers, " inputs");
  const auto check = [](const Tensor& tensor, int64_t rows, int64_t columns, const char* name,
                        size_t index) {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows &&
                        (columns < 0 || tensor.size(1) == columns) &&
                        tensor.scalar_type() == ScalarType::Float && !tensor.is_cuda(),
                    "metacurv: ", name, "[", index, "] must be a float32 matrix on the CPU with ",
                    rows, " rows that fits the layer above");
  };
  int64_t outputs = log_p.size(1);
  for (size_t l = 0; l < layers; ++l) {
    check(chain.inputs[l], rows, -1, "inputs", l);
    if (l + 1 < layers) {
      check(chain.weights[l], outputs, -1, "weights", l);
      outputs = chain.weights[l].size(1);
      check(chain.slopes[l], rows, outputs, "slopes", l);
    }
  }
}

}  // namespace metacurv
