// softmax_factor: u = root (t - t^2 sum_c t) with t = sqrt_p v, the signs v made from the counter.
//
// A draw is walked through once: t is written to u some hundred elements ahead, where it still lies
// in the cache when its row is summed and finished.
#include "../softmax_factor.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "chunks.h"
#include "eight.h"
#include "softmax_rows.h"

namespace metacurv {
namespace {

constexpr int64_t kWindowBlocks = 8;  // as many as AVX2 makes at once
constexpr int64_t kSumLanes = 32;     // as in the torch twin
static_assert(kSumLanes == kWordElements && kSumLanes == 4 * kEight, "written out below");

template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// t[k] = x[k], negated where bit k of `word` is set, for 32 elements.
template <int kWidth, typename T>
METACURV_INLINE void flip_word(const T* x, uint32_t word, T* t) {
  using Bits = BitsOf<T>;
  constexpr int64_t kVector = kWidth * sizeof(double) / sizeof(Bits);
  using Vector = VectorOf<Bits, kVector>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Vector select;
  for (int64_t k = 0; k < kVector; ++k) {
    select[k] = Bits{1} << k;
  }
#pragma GCC unroll 16
  for (int64_t k = 0; k < kWordElements; k += kVector) {
    const Bits bits = word >> k;
    const auto is_set = reinterpret_cast<Vector>((select & bits) == select);
    Vector value;
    std::memcpy(&value, x + k, sizeof value);
    value ^= is_set & kSign;
    std::memcpy(t + k, &value, sizeof value);
  }
}

// Elements [begin, end) of a parameter, within kWindowBlocks blocks from that of `begin` on.
template <int kWidth, typename T>
METACURV_INLINE void flip_window(const T* x, const SignStream& stream, int64_t begin, int64_t end,
                                 T* t) {
  uint32_t words[kWindowBlocks * kBlockWords];
  const int64_t first_block = begin / kBlockElements;
  simd().sign_words(stream, static_cast<uint64_t>(first_block),
                    (end - 1) / kBlockElements - first_block + 1, words);
  const int64_t origin = first_block * kBlockElements;
  for (int64_t i = begin; i < end;) {
    const uint32_t word = words[(i - origin) / kWordElements];
    if (i % kWordElements == 0 && i + kWordElements <= end) {
      flip_word<kWidth>(x + i, word, t + i);
      i += kWordElements;
    } else {
      t[i] = (word >> (i % kWordElements) & 1u) != 0 ? -x[i] : x[i];
      ++i;
    }
  }
}

// Element c goes to lane c % 32 in order; then the lanes are halved. Memory before `end` may be
// read.
template <int kWidth, typename T>
METACURV_INLINE double row_sum(const T* row, int64_t cols, const T* end) {
  Eight<kWidth> lanes[4];
  Eight<kWidth> next;
#pragma GCC unroll 4
  for (int64_t g = 0; g < 4; ++g) {
    lanes[g].clear();
  }
  int64_t c = 0;
  for (; c + kSumLanes <= cols; c += kSumLanes) {
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) {
      next.load(row + c + g * kEight);
      lanes[g].add(next);
    }
  }
#pragma GCC unroll 4
  for (int64_t g = 0; g < 4; ++g, c += kEight) {
    if (c + kEight <= cols) {
      next.load(row + c);
      lanes[g].add(next);
    } else if (c < cols) {
      next.load_first(row + c, cols - c, end);
      lanes[g].add(next);
    }
  }
  lanes[0].add(lanes[2]);
  lanes[1].add(lanes[3]);
  lanes[0].add(lanes[1]);
  return lanes[0].halved();
}

// Rows [first, last) of one draw. sqrt_p, u: [M, C]; root: [M].
template <int kWidth, typename T>
METACURV_INLINE void factor_rows(const T* sqrt_p, const T* root, const SignStream& stream,
                                 int64_t first, int64_t last, int64_t cols, T* u) {
  const int64_t end = last * cols;
  int64_t flipped = first * cols;  // t is in u up to here
  for (int64_t row = first; row < last; ++row) {
    while (flipped < (row + 1) * cols) {
      const int64_t window_end =
          std::min(end, (flipped / kBlockElements + kWindowBlocks) * kBlockElements);
      flip_window<kWidth>(sqrt_p, stream, flipped, window_end, u);
      flipped = window_end;
    }
    T* t = u + row * cols;
    const T sum = static_cast<T>(row_sum<kWidth, T>(t, cols, u + end));
    const T scale = root[row];
    for (int64_t c = 0; c < cols; ++c) {
      t[c] = scale * (t[c] - t[c] * t[c] * sum);
    }
  }
}

template <typename T>
void factor_rows_narrow(const T* sqrt_p, const T* root, const SignStream& stream, int64_t first,
                        int64_t last, int64_t cols, T* u) {
  factor_rows<kNarrow>(sqrt_p, root, stream, first, last, cols, u);
}

template <typename T>
METACURV_WIDE void factor_rows_wide(const T* sqrt_p, const T* root, const SignStream& stream,
                                    int64_t first, int64_t last, int64_t cols, T* u) {
  factor_rows<kWide>(sqrt_p, root, stream, first, last, cols, u);
}

template <typename T>
void factor(const T* in, const T* scale, const SignStream& stream, int64_t rows, int64_t cols,
            int64_t n_probes, T* out) {
  constexpr int64_t kThreadElements = 1 << 15;
  const auto run = runs_wide() ? factor_rows_wide<T> : factor_rows_narrow<T>;
  // A row of a draw is the unit of work.
  torch::stable::parallel_for(0, n_probes * rows, std::max<int64_t>(1, kThreadElements / cols),
                              [&](int64_t begin, int64_t end) {
                                while (begin < end) {
                                  const int64_t draw = begin / rows;
                                  const int64_t draw_end = std::min(end, (draw + 1) * rows);
                                  SignStream signs = stream;
                                  signs.probe += static_cast<uint32_t>(draw);  // modulo 2^32
                                  run(in, scale, signs, begin - draw * rows, draw_end - draw * rows,
                                      cols, out + draw * rows * cols);
                                  begin = draw_end;
                                }
                              });
}

template <typename T>
void factor_of(const Tensor& sqrt_p, const Tensor& root, const SignStream& stream, int64_t n_probes,
               Tensor& u) {
  factor(sqrt_p.const_data_ptr<T>(), root.const_data_ptr<T>(), stream, sqrt_p.size(0),
         sqrt_p.size(1), n_probes, u.mutable_data_ptr<T>());
}

// sqrt_p: [M, C], root: [M] -> [n_probes, M, C].
Tensor softmax_factor_number(const Tensor& sqrt_p, const Tensor& root, int64_t seed, int64_t probe,
                             int64_t number, int64_t n_probes) {
  check_softmax_factor(sqrt_p, root, number, n_probes);
  const SignStream stream =
      sign_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(number), check_probe(probe));
  Tensor u = torch::stable::new_empty(sqrt_p, {n_probes, sqrt_p.size(0), sqrt_p.size(1)});
  if (u.numel() > 0) {
    if (sqrt_p.scalar_type() == ScalarType::Float) {
      factor_of<float>(packed(sqrt_p), packed(root), stream, n_probes, u);
    } else {
      factor_of<double>(packed(sqrt_p), packed(root), stream, n_probes, u);
    }
  }
  return u;
}

Tensor softmax_factor(const Tensor& sqrt_p, const Tensor& root, int64_t seed, const Tensor& probe,
                      int64_t number, int64_t n_probes) {
  check_scalar(probe, "probe", ScalarType::Long);
  return softmax_factor_number(sqrt_p, root, seed, read_probe(probe), number, n_probes);
}

}  // namespace

void softmax_rows(const float* sqrt_p, const float* root, const SignStream& stream, int64_t rows,
                  int64_t cols, int64_t n_probes, float* u) {
  factor(sqrt_p, root, stream, rows, cols, n_probes, u);
}

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("softmax_factor", TORCH_BOX(&softmax_factor));
  m.impl("softmax_factor.number", TORCH_BOX(&softmax_factor_number));
}

}  // namespace metacurv
