// chain_taylor: v . H v of K probes, for a stack of layers under a softmax.
//
// Along a probe v the outputs of a layer move as z' = V a + v_b + W a', with a' those of the layer
// below; y'' is never pushed, what curves adds to the sample at once (taylor_rules.py has the
// argument):
//
//     a layer          2 <V' d, a'>,  d = dL/dz
//     an activation    <c, z'^2>,  c = s''(z) dL/da
//     the softmax      weight (sum p z'^2 - (sum p z')^2)
//
// Samples lie along the rows of all matrices here, so that signs and weights are left factors,
// which a product may read in any order: no probe is ever transposed. A thread takes a probe.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../philox.h"
#include "../tensor_list.h"
#include "simd.h"
#include "taylor_step.h"

namespace metacurv {
namespace {

constexpr int64_t kRowMultiple = 8;
constexpr int64_t kMostColumns = 128;  // samples that go through all layers at once

using Floats = std::vector<float>;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// [rows, cols] -> [cols, rows].
Floats transposed(const Tensor& matrix) {
  const Tensor from = packed(matrix);
  const float* x = from.const_data_ptr<float>();
  const int64_t rows = from.size(0);
  const int64_t cols = from.size(1);
  constexpr int64_t kBlock = 8;
  Floats y(static_cast<size_t>(rows * cols));
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t last = std::min(rows, first + kBlock);
    for (int64_t col = 0; col < cols; ++col) {
      for (int64_t row = first; row < last; ++row) {
        y[static_cast<size_t>(col * rows + row)] = x[row * cols + col];
      }
    }
  }
  return y;
}

struct TaylorLayer {
  int64_t inputs;
  int64_t outputs;
  int64_t weight_number;
  int64_t bias_number;  // -1: none
  bool is_transposed;   // the parameter is [outputs, inputs]
  Floats a;             // [inputs, N]
  // Of what lies below, where something does:
  Tensor weight;  // [outputs, inputs]
  Floats d;       // [outputs, N]
  Floats slope;   // [inputs, N]
  bool is_rectified;
  Floats curvature;  // [inputs, N], or empty
};

struct TaylorChain {
  int64_t samples;
  int64_t classes;
  Floats p;                         // [classes, N]
  Floats sample_weight;             // [N]
  std::vector<TaylorLayer> layers;  // from the top
};

void fill_signs(int64_t n, int64_t number, int64_t seed, uint32_t probe, Floats& signs) {
  const int64_t blocks = (n + kBlockElements - 1) / kBlockElements;
  signs.resize(static_cast<size_t>(blocks * kBlockElements));
  simd().fill_32(reinterpret_cast<uint32_t*>(signs.data()),
                 sign_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(number), probe), 0,
                 blocks, 0x3f800000u);
}

// The signs of one probe, layer by layer, and room for tangents.
struct Room {
  std::vector<Floats> of_weight;
  std::vector<Floats> of_bias;
  Floats here;
  Floats there;
};

void draw(const TaylorChain& chain, int64_t seed, uint32_t probe, Room& room) {
  room.of_weight.resize(chain.layers.size());
  room.of_bias.resize(chain.layers.size());
  for (size_t l = 0; l < chain.layers.size(); ++l) {
    const TaylorLayer& layer = chain.layers[l];
    fill_signs(layer.inputs * layer.outputs, layer.weight_number, seed, probe, room.of_weight[l]);
    if (layer.bias_number >= 0) {
      fill_signs(layer.outputs, layer.bias_number, seed, probe, room.of_bias[l]);
    }
  }
}

// sum_n weight_n (sum_c p z^2 - (sum_c p z)^2) of columns first ... first + columns - 1, taken
// about the mean so that it does not cancel. z: [classes, columns].
double softmax_share(const TaylorChain& chain, int64_t first, int64_t columns, const float* z,
                     int64_t stride) {
  double sum = 0.0;
  for (int64_t n = 0; n < columns; ++n) {
    const float* p = chain.p.data() + first + n;
    double mean = 0.0;
    for (int64_t c = 0; c < chain.classes; ++c) {
      mean += static_cast<double>(p[c * chain.samples]) * static_cast<double>(z[c * stride + n]);
    }
    double variance = 0.0;
    for (int64_t c = 0; c < chain.classes; ++c) {
      const double off = static_cast<double>(z[c * stride + n]) - mean;
      variance += static_cast<double>(p[c * chain.samples]) * off * off;
    }
    sum += static_cast<double>(chain.sample_weight[static_cast<size_t>(first + n)]) * variance;
  }
  return sum;
}

// One probe over samples first ... first + columns - 1.
double push(const TaylorChain& chain, int64_t first, int64_t columns, Room& room) {
  const TaylorKernels& kernels = taylor_kernels();
  const int64_t y_stride = round_up(columns, kRowMultiple);
  double sum = 0.0;
  for (size_t l = chain.layers.size(); l-- > 0;) {
    const TaylorLayer& layer = chain.layers[l];
    const bool is_bottom = l + 1 == chain.layers.size();
    const float* signs = room.of_weight[l].data();
    // V as [outputs, inputs], however it is stored.
    const int64_t out_stride = layer.is_transposed ? layer.inputs : 1;
    const int64_t in_stride = layer.is_transposed ? 1 : layer.outputs;
    if (!is_bottom) {
      TaylorTask back{};
      back.rows = layer.inputs;
      back.columns = columns;
      back.factors[0] = {signs,         in_stride,    out_stride, layer.d.data() + first,
                         chain.samples, layer.outputs};
      back.other = room.here.data();
      back.stride = y_stride;
      sum += 2.0 * kernels.step(back);
    }
    TaylorTask task{};
    task.rows = layer.outputs;
    task.columns = columns;
    task.factors[0] = {signs,         out_stride,  in_stride, layer.a.data() + first,
                       chain.samples, layer.inputs};
    if (!is_bottom) {
      task.factors[1] = {layer.weight.const_data_ptr<float>(),
                         layer.inputs,
                         1,
                         room.here.data(),
                         y_stride,
                         layer.inputs};
    }
    task.bias = layer.bias_number >= 0 ? room.of_bias[l].data() : nullptr;
    if (l > 0) {
      const TaylorLayer& above = chain.layers[l - 1];
      task.slope = above.slope.data() + first;
      task.is_rectified = above.is_rectified;
      task.curvature = above.curvature.empty() ? nullptr : above.curvature.data() + first;
      task.stride = chain.samples;
    }
    task.y = room.there.data();
    task.y_stride = y_stride;
    sum += kernels.step(task);
    std::swap(room.here, room.there);
  }
  return sum + softmax_share(chain, first, columns, room.here.data(), y_stride);
}

void check_float_matrix(const Tensor& tensor, int64_t rows, int64_t columns, const char* name,
                        size_t index) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns &&
                      tensor.scalar_type() == ScalarType::Float && !tensor.is_cuda(),
                  "metacurv: ", name, "[", index,
                  "] must be a float32 matrix on the CPU of shape [", rows, ", ", columns, "]");
}

TaylorChain make_chain(const Tensor& log_p, const Tensor& sample_weight,
                       const std::vector<int64_t>& numbers,
                       const std::vector<bool>& transposed_ones, const std::vector<Tensor>& inputs,
                       const std::vector<Tensor>& weights, const std::vector<Tensor>& slopes,
                       const std::vector<bool>& rectified, const std::vector<Tensor>& cotangents,
                       const std::vector<Tensor>& curvatures) {
  const size_t layers = inputs.size();
  STD_TORCH_CHECK(log_p.dim() == 2 && log_p.scalar_type() == ScalarType::Float,
                  "metacurv: log_p must be a float32 matrix");
  STD_TORCH_CHECK(layers > 0, "metacurv: inputs must hold one tensor a layer, got none");
  STD_TORCH_CHECK(numbers.size() == 2 * layers && transposed_ones.size() == layers,
                  "metacurv: numbers must have two entries and transposed one for each of the ",
                  layers, " inputs");
  for (const size_t size :
       {weights.size(), slopes.size(), rectified.size(), cotangents.size(), curvatures.size()}) {
    STD_TORCH_CHECK(size + 1 == layers,
                    "metacurv: weights, slopes, rectified, cotangents and curvatures must have one "
                    "entry fewer than the ",
                    layers, " inputs");
  }
  TaylorChain chain{};
  chain.samples = log_p.size(0);
  chain.classes = log_p.size(1);
  STD_TORCH_CHECK(sample_weight.dim() == 1 && sample_weight.scalar_type() == ScalarType::Float &&
                      (sample_weight.size(0) == chain.samples || sample_weight.size(0) == 1),
                  "metacurv: sample_weight must be float32 of shape [1] or [", chain.samples, "]");
  chain.p = transposed(log_p);
  std::transform(chain.p.begin(), chain.p.end(), chain.p.begin(),
                 [](float log) { return std::exp(log); });
  const Tensor of_sample = packed(sample_weight);
  const float* s = of_sample.const_data_ptr<float>();
  for (int64_t n = 0; n < chain.samples; ++n) {
    chain.sample_weight.push_back(s[of_sample.size(0) == 1 ? 0 : n]);
  }
  int64_t outputs = chain.classes;
  for (size_t l = 0; l < layers; ++l) {
    STD_TORCH_CHECK(inputs[l].dim() == 2, "metacurv: inputs[", l, "] must be a matrix");
    const int64_t width = inputs[l].size(1);
    check_float_matrix(inputs[l], chain.samples, width, "inputs", l);
    for (const int64_t number : {numbers[2 * l], numbers[2 * l + 1]}) {
      STD_TORCH_CHECK(number >= -1 && number <= std::numeric_limits<uint32_t>::max(),
                      "metacurv: numbers must be -1 or in [0, 2^32), got ", number);
    }
    STD_TORCH_CHECK(numbers[2 * l] >= 0, "metacurv: numbers[", 2 * l, "] must be in [0, 2^32)");
    TaylorLayer layer{width,
                      outputs,
                      numbers[2 * l],
                      numbers[2 * l + 1],
                      transposed_ones[l],
                      transposed(inputs[l]),
                      inputs[l],
                      {},
                      {},
                      false,
                      {}};
    if (l + 1 < layers) {
      check_float_matrix(weights[l], outputs, width, "weights", l);
      check_float_matrix(slopes[l], chain.samples, width, "slopes", l);
      check_float_matrix(cotangents[l], chain.samples, outputs, "cotangents", l);
      layer.weight = packed(weights[l]);
      layer.d = transposed(cotangents[l]);
      layer.slope = transposed(slopes[l]);
      layer.is_rectified = rectified[l];
      if (curvatures[l].numel() > 0) {
        check_float_matrix(curvatures[l], chain.samples, width, "curvatures", l);
        layer.curvature = transposed(curvatures[l]);
      }
    }
    chain.layers.push_back(std::move(layer));
    outputs = width;
  }
  return chain;
}

Tensor chain_taylor(const Tensor& log_p, const Tensor& sample_weight, int64_t seed, int64_t probe,
                    int64_t n_probes, std::vector<int64_t> numbers,
                    std::vector<bool> transposed_ones, std::vector<Tensor> inputs,
                    std::vector<Tensor> weights, std::vector<Tensor> slopes,
                    std::vector<bool> rectified, std::vector<Tensor> cotangents,
                    std::vector<Tensor> curvatures) {
  const TaylorChain chain = make_chain(log_p, sample_weight, numbers, transposed_ones, inputs,
                                       weights, slopes, rectified, cotangents, curvatures);
  STD_TORCH_CHECK(n_probes >= 0, "metacurv: n_probes must be >= 0, got ", n_probes);
  const uint32_t first_probe = check_probe(probe);
  const int64_t blocks = std::max<int64_t>(1, (chain.samples + kMostColumns - 1) / kMostColumns);
  const int64_t columns = (chain.samples + blocks - 1) / blocks;
  int64_t widest = chain.classes;
  for (const TaylorLayer& layer : chain.layers) {
    widest = std::max(widest, layer.outputs);
  }
  Tensor samples = torch::stable::new_empty(log_p, {n_probes}, ScalarType::Double);
  double* sums = samples.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, n_probes, 1, [&](int64_t begin, int64_t end) {
    Room room;
    room.here.resize(static_cast<size_t>(widest * round_up(columns, kRowMultiple)));
    room.there.resize(room.here.size());
    for (int64_t k = begin; k < end; ++k) {
      draw(chain, seed, first_probe + static_cast<uint32_t>(k), room);
      sums[k] = 0.0;
      for (int64_t first = 0; first < chain.samples; first += columns) {
        sums[k] += push(chain, first, std::min(columns, chain.samples - first), room);
      }
    }
  });
  return samples;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) { m.impl("chain_taylor", TORCH_BOX(&chain_taylor)); }

}  // namespace metacurv
