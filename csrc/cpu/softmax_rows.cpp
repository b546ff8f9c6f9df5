// A probe's signs are made at once, a bit for each element; then every row is summed and finished
// while it lies in the cache.
#include "softmax_rows.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace metacurv {
namespace {

// begin: the index of the row's first element in its probe; words: the signs of the probe.
void finish_row(const float* sqrt_p, float root, const uint32_t* words, int64_t begin, int64_t cols,
                float* u) {
  constexpr float kSigns[2] = {1.0F, -1.0F};
  constexpr int64_t kLanes = 4;  // additions need not wait for each other
  double lanes[kLanes] = {};
  for (int64_t c = 0; c < cols; ++c) {
    const int64_t i = begin + c;
    u[c] = kSigns[(words[i / kWordElements] >> (i % kWordElements)) & 1u] * sqrt_p[c];
    lanes[c % kLanes] += static_cast<double>(u[c]);
  }
  const float sum = static_cast<float>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
  for (int64_t c = 0; c < cols; ++c) {
    u[c] = root * (u[c] - u[c] * u[c] * sum);
  }
}

}  // namespace

void softmax_rows(const float* sqrt_p, const float* root, const SignStream& stream, int64_t rows,
                  int64_t cols, int64_t n_probes, float* u) {
  constexpr int64_t kThreadElements = 1 << 15;
  const int64_t blocks = (rows * cols + kBlockElements - 1) / kBlockElements;
  const auto draw = [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> words(static_cast<size_t>(blocks * kBlockWords));
    for (int64_t k = begin; k < end; ++k) {
      SignStream signs = stream;
      signs.probe += static_cast<uint32_t>(k);  // modulo 2^32
      simd().sign_words(signs, 0, blocks, words.data());
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t first = row * cols;
        finish_row(sqrt_p + first, root[row], words.data(), first, cols,
                   u + k * rows * cols + first);
      }
    }
  };
  torch::stable::parallel_for(0, n_probes, std::max<int64_t>(1, kThreadElements / (rows * cols)),
                              draw);
}

}  // namespace metacurv
