// chain_draws, chain_columns: cotangents of a softmax's factor taken down a stack of layers, and at
// each layer sum_n ||a_n||^2 ||u_rn||^2 and sum_n ||u_rn||^2 for every draw or column r.
//
// A thread takes some rows through all layers, so that nothing but those rows is ever stored. One
// call does it all: on small networks a dozen calls of torch would take longer than the work.
#include "../chain.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "chain_step.h"
#include "softmax_rows.h"

namespace metacurv {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

Chain packed_chain(std::vector<Tensor> inputs, std::vector<Tensor> weights,
                   std::vector<Tensor> slopes, std::vector<bool> rectified) {
  for (std::vector<Tensor>* list : {&inputs, &weights, &slopes}) {
    std::transform(list->begin(), list->end(), list->begin(), packed);
  }
  return {std::move(inputs), std::move(weights), std::move(slopes), std::move(rectified)};
}

// sqrt p of every class, and the square root of every sample's weight.
struct Softmax {
  Softmax(const Tensor& log_p, const Tensor& sample_weight)
      : rows(log_p.size(0)),
        classes(log_p.size(1)),
        sqrt_p(static_cast<size_t>(rows * classes)),
        root(static_cast<size_t>(rows)) {
    const Tensor exponents = packed(log_p);
    const float* x = exponents.const_data_ptr<float>();
    std::transform(x, x + sqrt_p.size(), sqrt_p.begin(),
                   [](float log) { return std::exp(0.5F * log); });
    const Tensor weights = packed(sample_weight);
    const float* s = weights.const_data_ptr<float>();
    const bool is_one = weights.size(0) == 1;
    for (size_t n = 0; n < root.size(); ++n) {
      root[n] = std::sqrt(s[is_one ? 0 : n]);
    }
  }

  int64_t rows;
  int64_t classes;
  std::vector<float> sqrt_p;
  std::vector<float> root;
};

// squares: [L, R N]: the sum of squares of each row of cotangents, layer by layer. u: [R, N, C].
void square_rows(const std::vector<float>& u, int64_t draws, const Softmax& softmax,
                 const Chain& chain, std::vector<double>& squares) {
  constexpr int64_t kThreadProducts = 1 << 20;
  const ChainKernels& kernels = chain_kernels();
  const size_t steps = chain.weights.size();
  const int64_t rows = draws * softmax.rows;
  int64_t widest = 1;
  int64_t products = 1;
  for (const Tensor& weight : chain.weights) {
    widest = std::max(widest, weight.size(1));
    products += weight.numel();
  }
  const int64_t stride = round_up(widest, kRowMultiple);
  const int64_t tasks = (rows + kChainRows - 1) / kChainRows;
  torch::stable::parallel_for(
      0, tasks, kThreadProducts / (kChainRows * products) + 1, [&](int64_t begin, int64_t end) {
        std::vector<float> buffers[2];
        for (std::vector<float>& buffer : buffers) {
          buffer.resize(steps > 1 ? static_cast<size_t>(kChainRows * stride) : 0);
        }
        for (int64_t t = begin; t < end; ++t) {
          const int64_t first = t * kChainRows;
          const int64_t here = std::min(kChainRows, rows - first);
          const float* x = u.data() + first * softmax.classes;
          int64_t x_stride = softmax.classes;
          double* sums = squares.data() + first;
          kernels.squares(x, here, x_stride, sums);
          for (size_t l = 0; l < steps; ++l) {
            const Tensor& weight = chain.weights[l];
            float* y = l + 1 < steps ? buffers[l % 2].data() : nullptr;
            sums += rows;
            kernels.step({x, x_stride, here, weight.const_data_ptr<float>(), weight.size(0),
                          weight.size(1), chain.slopes[l].const_data_ptr<float>(),
                          chain.rectified[l], first, softmax.rows, y, stride, sums});
            x = y;
            x_stride = stride;
          }
        }
      });
}

// u: [R, N, C] -> float64 [R, 2 L].
Tensor products(const std::vector<float>& u, int64_t draws, const Softmax& softmax,
                const Chain& chain) {
  const int64_t layers = static_cast<int64_t>(chain.inputs.size());
  const int64_t samples = softmax.rows;
  std::vector<double> squares(static_cast<size_t>(layers * draws * samples));
  square_rows(u, draws, softmax, chain, squares);
  Tensor table = torch::stable::new_empty(chain.inputs[0], {draws, 2 * layers}, ScalarType::Double);
  double* sums = table.mutable_data_ptr<double>();
  std::vector<double> norms(static_cast<size_t>(samples));
  const double* square = squares.data();
  for (int64_t l = 0; l < layers; ++l) {
    const Tensor& a = chain.inputs[static_cast<size_t>(l)];
    chain_kernels().squares(a.const_data_ptr<float>(), samples, a.size(1), norms.data());
    for (int64_t r = 0; r < draws; ++r, square += samples) {
      double weighted = 0.0;
      double plain = 0.0;
      for (int64_t n = 0; n < samples; ++n) {
        weighted += norms[static_cast<size_t>(n)] * square[n];
        plain += square[n];
      }
      sums[r * 2 * layers + 2 * l] = weighted;
      sums[r * 2 * layers + 2 * l + 1] = plain;
    }
  }
  return table;
}

Tensor chain_draws(const Tensor& log_p, const Tensor& sample_weight, int64_t seed, int64_t probe,
                   int64_t n_probes, std::vector<Tensor> inputs, std::vector<Tensor> weights,
                   std::vector<Tensor> slopes, std::vector<bool> rectified) {
  const Chain chain =
      packed_chain(std::move(inputs), std::move(weights), std::move(slopes), std::move(rectified));
  check_chain(log_p, sample_weight, chain);
  STD_TORCH_CHECK(n_probes >= 0, "metacurv: n_probes must be >= 0, got ", n_probes);
  const Softmax softmax(log_p, sample_weight);
  std::vector<float> u(static_cast<size_t>(n_probes) * softmax.sqrt_p.size());
  if (!u.empty()) {
    softmax_rows(softmax.sqrt_p.data(), softmax.root.data(),
                 sign_stream(static_cast<uint64_t>(seed), 0, check_probe(probe)), softmax.rows,
                 softmax.classes, n_probes, u.data());
  }
  return products(u, n_probes, softmax, chain);
}

// Columns start + 1 ... stop of diag(root q) (I - v v' / (1 + q_0)), q = sqrt p, v = q + e_0: a
// reflection that takes q to -e_0. u: [stop - start, N, C].
void fill_columns(const Softmax& softmax, int64_t start, int64_t stop, float* u) {
  const int64_t classes = softmax.classes;
  for (int64_t column = start + 1; column <= stop; ++column) {
    for (int64_t n = 0; n < softmax.rows; ++n, u += classes) {
      const float* q = softmax.sqrt_p.data() + n * classes;
      const float root = softmax.root[static_cast<size_t>(n)];
      const float factor = -root * (q[column] / (1.0F + q[0]));
      for (int64_t c = 0; c < classes; ++c) {
        u[c] = factor * q[c] * q[c];
      }
      u[0] = factor * q[0] * (1.0F + q[0]);
      u[column] += root * q[column];
    }
  }
}

Tensor chain_columns(const Tensor& log_p, const Tensor& sample_weight, int64_t start, int64_t stop,
                     std::vector<Tensor> inputs, std::vector<Tensor> weights,
                     std::vector<Tensor> slopes, std::vector<bool> rectified) {
  const Chain chain =
      packed_chain(std::move(inputs), std::move(weights), std::move(slopes), std::move(rectified));
  check_chain(log_p, sample_weight, chain);
  STD_TORCH_CHECK(start >= 0 && start <= stop && stop < std::max<int64_t>(1, log_p.size(1)),
                  "metacurv: start and stop must be 0 <= start <= stop < ", log_p.size(1), ", got ",
                  start, " and ", stop);
  const Softmax softmax(log_p, sample_weight);
  std::vector<float> u(static_cast<size_t>(stop - start) * softmax.sqrt_p.size());
  fill_columns(softmax, start, stop, u.data());
  return products(u, stop - start, softmax, chain);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("chain_draws", TORCH_BOX(&chain_draws));
  m.impl("chain_columns", TORCH_BOX(&chain_columns));
}

}  // namespace metacurv
