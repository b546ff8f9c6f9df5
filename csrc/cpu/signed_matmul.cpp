// signed_matmul: x V or x V' for a parameter's probe V, a matrix of signs that is never made (see
// sign_tables.h).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../philox.h"
#include "../tensor_list.h"
#include "sign_tables.h"
#include "simd.h"

namespace metacurv {
namespace {

// The sign bits of a parameter as one string of bits, with room to read 8 bytes at any of them.
class SignBits {
 public:
  SignBits(const SignStream& stream, int64_t n) {
    const int64_t blocks = (n + kBlockElements - 1) / kBlockElements;
    words_.resize(static_cast<size_t>(blocks * kBlockWords + 2));
    simd().sign_words(stream, 0, blocks, words_.data());
  }

  // 32 bits from bit `position` on, the first one lowest.
  uint32_t from(int64_t position) const {
    const uint64_t start = static_cast<uint64_t>(position);
    const uint64_t low = words_[start / kWordElements];
    const uint64_t high = words_[start / kWordElements + 1];
    return static_cast<uint32_t>((low | high << 32) >> (start % kWordElements));
  }

 private:
  std::vector<uint32_t> words_;
};

// indices: [output blocks, groups, 16], the table index of each output in each group of four
// factors.

// Outputs are neighbours in memory: four runs of 16 bits, one for each factor, give 16 indices.
void index_outputs(const SignBits& bits, int64_t factors, int64_t outputs, uint8_t* indices) {
  const SignTableKernels& kernels = sign_tables();
  const int64_t groups = (factors + kGroup - 1) / kGroup;
  for (int64_t first = 0; first < outputs; first += kLanes) {
    for (int64_t g = 0; g < groups; ++g, indices += kLanes) {
      uint16_t runs[kGroup] = {};
      for (int64_t k = 0; k < std::min(kGroup, factors - g * kGroup); ++k) {
        runs[k] = static_cast<uint16_t>(bits.from((g * kGroup + k) * outputs + first));
      }
      kernels.interleave(runs, indices);
    }
  }
}

// Factors are neighbours in memory: 32 bits of an output's row give its indices in eight groups.
// Bits past the last factor select the sign of a zero.
void index_factors(const SignBits& bits, int64_t factors, int64_t outputs, uint8_t* indices) {
  constexpr int64_t kGroupsPerRead = kWordElements / kGroup;
  const int64_t groups = (factors + kGroup - 1) / kGroup;
  for (int64_t output = 0; output < outputs; ++output) {
    uint8_t* target = indices + (output / kLanes) * groups * kLanes + output % kLanes;
    for (int64_t g = 0; g < groups; g += kGroupsPerRead) {
      uint32_t read = bits.from(output * factors + g * kGroup);
      for (int64_t i = 0; i < std::min(kGroupsPerRead, groups - g); ++i, read >>= kGroup) {
        target[(g + i) * kLanes] = read & (kTable - 1);
      }
    }
  }
}

// Eight rows of the result; x: [rows <= 8, factors], y: [rows, outputs], both contiguous.
void multiply_rows(const float* x, float* y, int64_t rows, int64_t factors, int64_t outputs,
                   const uint8_t* indices) {
  const int64_t groups = (factors + kGroup - 1) / kGroup;
  const int64_t blocks = (outputs + kLanes - 1) / kLanes;
  constexpr int64_t kStride = kGroupBlock * kTable;
  const SignTableKernels& kernels = sign_tables();
  std::vector<float> tables(kRowBlock * kStride);  // rows past the last stay 0
  std::vector<float> sums(static_cast<size_t>(blocks * kRowBlock * kLanes));
  float padded[kGroupBlock * kGroup];
  for (int64_t first = 0; first < groups; first += kGroupBlock) {
    const int64_t count = std::min(kGroupBlock, groups - first);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t begin = first * kGroup;
      const int64_t used = std::min(factors - begin, count * kGroup);
      std::fill(padded + used, padded + count * kGroup, 0.0f);
      std::memcpy(padded, x + r * factors + begin, static_cast<size_t>(used) * sizeof(float));
      kernels.make_tables(padded, count, tables.data() + r * kStride);
    }
    for (int64_t block = 0; block < blocks; ++block) {
      kernels.look_up(tables.data(), kStride, indices + (block * groups + first) * kLanes, count,
                      sums.data() + block * kRowBlock * kLanes);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t lanes = std::min(kLanes, outputs - block * kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(y + r * outputs + block * kLanes, sums.data() + (block * kRowBlock + r) * kLanes,
                  static_cast<size_t>(lanes) * sizeof(float));
    }
  }
}

// x: [n, cols] with transpose, else [n, rows]; V: [rows, cols] -> [n, rows] = x V', else [n, cols]
// = x V.
Tensor signed_matmul(const Tensor& x, int64_t seed, const Tensor& probe, int64_t number,
                     int64_t rows, int64_t cols, bool transpose) {
  check_scalar(probe, "probe", ScalarType::Long);
  const int64_t factors = transpose ? cols : rows;
  const int64_t outputs = transpose ? rows : cols;
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == factors && x.scalar_type() == ScalarType::Float &&
                      x.is_contiguous(),
                  "metacurv: x must be a contiguous float32 matrix with ", factors, " columns");
  STD_TORCH_CHECK(rows > 0 && cols > 0 && cols <= (int64_t{1} << 62) / rows,
                  "metacurv: rows and cols must be > 0 with rows x cols <= 2^62, got ", rows,
                  " and ", cols);
  STD_TORCH_CHECK(number >= 0 && number <= std::numeric_limits<uint32_t>::max(),
                  "metacurv: number must be in [0, 2^32), got ", number);
  const int64_t n = x.size(0);
  Tensor y = torch::stable::new_empty(x, {n, outputs});
  const SignStream stream = sign_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(number),
                                        static_cast<uint32_t>(*probe.const_data_ptr<int64_t>()));
  const SignBits bits(stream, rows * cols);
  const int64_t groups = (factors + kGroup - 1) / kGroup;
  const int64_t output_blocks = (outputs + kLanes - 1) / kLanes;
  std::vector<uint8_t> indices(static_cast<size_t>(output_blocks * groups * kLanes));
  (transpose ? index_factors : index_outputs)(bits, factors, outputs, indices.data());
  const float* in = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  torch::stable::parallel_for(
      0, (n + kRowBlock - 1) / kRowBlock, 4, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          const int64_t row = block * kRowBlock;
          multiply_rows(in + row * factors, out + row * outputs, std::min(kRowBlock, n - row),
                        factors, outputs, indices.data());
        }
      });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) { m.impl("signed_matmul", TORCH_BOX(&signed_matmul)); }

}  // namespace metacurv
