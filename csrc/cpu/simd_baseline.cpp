// The portable table: plain loops, any compiler, any CPU.
#include <cstring>

#include "simd.h"

namespace metacurv {
namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

double widen_bf16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// The magnitude bits of a half, moved to a float's place, are the value times 2^-112.
double widen_f16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const bool is_special = (bits & 0x7c00u) == 0x7c00u;  // inf or nan
  const double value = is_special ? static_cast<double>(from_bits(magnitude | 0x7f800000u))
                                  : static_cast<double>(from_bits(magnitude)) * 0x1p112;
  return (bits & 0x8000u) != 0 ? -value : value;
}

double widen_f32(float value) { return value; }
double widen_f64(double value) { return value; }

void sign_words(const SignStream& stream, uint64_t first_block, int64_t blocks, uint32_t* words) {
  for (int64_t j = 0; j < blocks; ++j) {
    const PhiloxBlock block = sign_block(stream, first_block + static_cast<uint64_t>(j));
    std::memcpy(words + kBlockWords * j, block.word, sizeof block.word);
  }
}

template <typename T, double (*widen)(T)>
void sum_rows(const T* x, const uint32_t* words, int64_t rows, double* lanes) {
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t word = words[row];
    const T* elements = x + kWordElements * row;
    for (int k = 0; k < kWordElements; ++k) {
      // A table, not a branch: signs are random, so a branch would be mispredicted half the time.
      constexpr double kSigns[2] = {1.0, -1.0};
      lanes[k] += kSigns[(word >> k) & 1u] * widen(elements[k]);
    }
  }
}

template <typename Bits>
void fill_rows(Bits* x, const uint32_t* words, int64_t rows, Bits one) {
  constexpr int kSignBit = 8 * static_cast<int>(sizeof(Bits)) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t word = words[row];
    Bits* elements = x + kWordElements * row;
    for (int k = 0; k < kWordElements; ++k) {
      elements[k] = static_cast<Bits>(one | (static_cast<Bits>((word >> k) & 1u) << kSignBit));
    }
  }
}

}  // namespace

const SimdTable& simd_baseline() {
  static const SimdTable table = {
      "baseline",
      sign_words,
      sum_in_pieces<sign_words, float, sum_rows<float, widen_f32>>,
      sum_in_pieces<sign_words, double, sum_rows<double, widen_f64>>,
      sum_in_pieces<sign_words, uint16_t, sum_rows<uint16_t, widen_f16>>,
      sum_in_pieces<sign_words, uint16_t, sum_rows<uint16_t, widen_bf16>>,
      fill_in_pieces<sign_words, uint16_t, fill_rows<uint16_t>>,
      fill_in_pieces<sign_words, uint32_t, fill_rows<uint32_t>>,
      fill_in_pieces<sign_words, uint64_t, fill_rows<uint64_t>>,
  };
  return table;
}

}  // namespace metacurv
