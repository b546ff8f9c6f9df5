// step_direction_: (keep before - after) / lr of every tensor, with three sums in the same pass.
// move_: start + distance direction of every tensor.
//
// Elements are computed in float32 (float64 tensors: float64) and rounded once. Order of summation,
// fixed and equal to the torch twin's (metacurv/_step.py): within a chunk, lane i % 32 adds its
// squares in index order in float64; the 32 lanes are halved as a tree; chunks are added in order,
// then tensors.
#include "../step_line.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>

#include "../step_args.h"
#include "chunks.h"
#include "eight.h"
#include "halves.h"

namespace metacurv {
namespace {

constexpr int64_t kChunksPerThread = 2;

// How elements lie in memory (Bits) and what is computed with (Real).
struct Float32 {
  using Bits = float;
  using Real = float;
};
struct Float64 {
  using Bits = double;
  using Real = double;
};
struct Float16 {
  using Bits = uint16_t;
  using Real = float;
  static METACURV_INLINE Real widen(Bits bits) { return widen_f16(bits); }
  static METACURV_INLINE Bits round(Real value) { return round_f16(value); }
};
struct BFloat16 {
  using Bits = uint16_t;
  using Real = float;
  static METACURV_INLINE Real widen(Bits bits) { return widen_bf16(bits); }
  static METACURV_INLINE Bits round(Real value) { return round_bf16(value); }
};

// One tensor as numbers to compute with: pieces of at most kBufferElements elements, in row-major
// order from `start` on, each read or written once. What can be used in place is.
template <typename Element>
class Pieces {
 public:
  using Bits = typename Element::Bits;
  using Real = typename Element::Real;

  Pieces(const TensorView& view, int64_t start)
      : contiguous_(view.is_contiguous()),
        next_(static_cast<Bits*>(view.data) + (contiguous_ ? start : 0)) {
    if (!contiguous_) {
      cursor_.emplace(view, start);
    }
  }

  // The next n elements.
  METACURV_INLINE const Real* read(int64_t n) {
    const Bits* bits = next_;
    if (contiguous_) {
      next_ += n;
    } else {
      cursor_->read(bits_, n);
      bits = bits_;
    }
    if constexpr (kInPlace) {
      return bits;
    } else {
      for (int64_t i = 0; i < n; ++i) {
        reals_[i] = Element::widen(bits[i]);
      }
      return reals_;
    }
  }

  // Where the next elements are to be put before write().
  METACURV_INLINE Real* target() {
    if constexpr (kInPlace) {
      return contiguous_ ? next_ : bits_;
    } else {
      return reals_;
    }
  }

  // Stores the n elements at target() and leaves them there as they were rounded.
  METACURV_INLINE void write(int64_t n) {
    if constexpr (!kInPlace) {
      Bits* bits = contiguous_ ? next_ : bits_;
      for (int64_t i = 0; i < n; ++i) {
        bits[i] = Element::round(reals_[i]);
        reals_[i] = Element::widen(bits[i]);
      }
    }
    if (contiguous_) {
      next_ += n;
    } else {
      cursor_->write(bits_, n);
    }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<Bits, Real>;

  const bool contiguous_;
  Bits* next_;
  std::optional<StridedCursor<Bits>> cursor_;
  Bits bits_[kBufferElements];
  Real reals_[kInPlace ? 1 : kBufferElements];
};

// out = formula(x, y) for n elements; out may be x or y.
template <int kWidth, typename Formula, typename Real>
METACURV_INLINE void map(const Formula& formula, const Real* x, const Real* y, int64_t n,
                         Real* out) {
  constexpr int64_t kLanes = kWidth * static_cast<int64_t>(sizeof(double) / sizeof(Real));
  using Lanes = VectorOf<Real, kLanes>;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes a;
    Lanes b;
    Lanes result;
    std::memcpy(&a, x + i, sizeof a);
    std::memcpy(&b, y + i, sizeof b);
    formula(a, b, result);
    std::memcpy(out + i, &result, sizeof result);
  }
  for (; i < n; ++i) {
    Real result;
    formula(x[i], y[i], result);
    out[i] = result;
  }
}

// Squares added lane by lane, 32 lanes in four registers or more.
template <int kWidth>
class SquareLanes {
 public:
  METACURV_INLINE SquareLanes() {
    for (Eight<kWidth>& part : parts_) {
      part.clear();
    }
  }

  // x: [n]; a call whose n is no multiple of 32 must be the last.
  template <typename Real>
  METACURV_INLINE void add(const Real* x, int64_t n) {
    Eight<kWidth> sums[kParts];  // of their own, so that they stay in registers
    std::copy_n(parts_, kParts, sums);
    for (; n >= kWordElements; n -= kWordElements, x += kWordElements) {
      add_row(x, sums);
    }
    if (n > 0) {
      Real padded[kWordElements] = {};
      std::copy_n(x, n, padded);
      add_row(padded, sums);
    }
    std::copy_n(sums, kParts, parts_);
  }

  METACURV_INLINE double total() const {
    Eight<kWidth> eight = parts_[0];
    eight.add(parts_[2]);
    Eight<kWidth> other = parts_[1];
    other.add(parts_[3]);
    eight.add(other);
    return eight.halved();
  }

 private:
  static constexpr int kParts = kWordElements / kEight;

  template <typename Real>
  static METACURV_INLINE void add_row(const Real* x, Eight<kWidth> (&sums)[kParts]) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      Eight<kWidth> part;
      part.load(x + kEight * p);
      sums[p].add_product(part, part);
    }
  }

  Eight<kWidth> parts_[kParts];
};

template <typename Real>
METACURV_INLINE int64_t count_not_finite(const Real* x, int64_t n) {
  std::conditional_t<sizeof(Real) == 4, int32_t, int64_t> count = 0;  // as wide: vectorises better
  for (int64_t i = 0; i < n; ++i) {
    count += is_not_finite(x[i]) ? 1 : 0;
  }
  return count;
}

// Three tensors of one shape and dtype.
struct StepViews {
  const TensorView& out;
  const TensorView& x;
  const TensorView& y;
};

// Of direction^2, of before^2, and the number of elements of direction that are not finite.
using StepSums = std::array<double, 3>;

template <int kWidth, typename Element>
METACURV_INLINE StepSums direct(const StepViews& views, const Chunk& chunk, double keep,
                                double lr) {
  using Real = typename Element::Real;
  const StepDirection<Real> formula{static_cast<Real>(keep), static_cast<Real>(lr)};
  Pieces<Element> direction(views.out, chunk.begin);
  Pieces<Element> before(views.x, chunk.begin);
  Pieces<Element> after(views.y, chunk.begin);
  SquareLanes<kWidth> steps;
  SquareLanes<kWidth> starts;
  int64_t bad = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBufferElements) {
    const int64_t n = std::min(kBufferElements, chunk.end - begin);
    const Real* x = before.read(n);
    const Real* y = after.read(n);
    Real* out = direction.target();
    starts.add(x, n);  // first: `out` may be `x`
    map<kWidth>(formula, x, y, n, out);
    direction.write(n);
    steps.add(out, n);
    bad += count_not_finite(out, n);
  }
  return {steps.total(), starts.total(), static_cast<double>(bad)};
}

template <int kWidth, typename Element>
METACURV_INLINE void move(const StepViews& views, const Chunk& chunk, double distance) {
  using Real = typename Element::Real;
  const Move<Real> formula{static_cast<Real>(distance)};
  Pieces<Element> parameter(views.out, chunk.begin);
  Pieces<Element> start(views.x, chunk.begin);
  Pieces<Element> direction(views.y, chunk.begin);
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBufferElements) {
    const int64_t n = std::min(kBufferElements, chunk.end - begin);
    map<kWidth>(formula, start.read(n), direction.read(n), n, parameter.target());
    parameter.write(n);
  }
}

template <typename Element>
StepSums direct_narrow(const StepViews& views, const Chunk& chunk, double keep, double lr) {
  return direct<kNarrow, Element>(views, chunk, keep, lr);
}

template <typename Element>
METACURV_WIDE StepSums direct_wide(const StepViews& views, const Chunk& chunk, double keep,
                                   double lr) {
  return direct<kWide, Element>(views, chunk, keep, lr);
}

template <typename Element>
void move_narrow(const StepViews& views, const Chunk& chunk, double distance) {
  move<kNarrow, Element>(views, chunk, distance);
}

template <typename Element>
METACURV_WIDE void move_wide(const StepViews& views, const Chunk& chunk, double distance) {
  move<kWide, Element>(views, chunk, distance);
}

struct StepKernels {
  StepSums (*direct)(const StepViews& views, const Chunk& chunk, double keep, double lr);
  void (*move)(const StepViews& views, const Chunk& chunk, double distance);
};

template <typename Element>
StepKernels kernels_for() {
  return runs_wide() ? StepKernels{direct_wide<Element>, move_wide<Element>}
                     : StepKernels{direct_narrow<Element>, move_narrow<Element>};
}

StepKernels kernels(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return kernels_for<Float32>();
    case ScalarType::Double:
      return kernels_for<Float64>();
    case ScalarType::Half:
      return kernels_for<Float16>();
    default:  // BFloat16; check_lists lets no other dtype through
      return kernels_for<BFloat16>();
  }
}

std::vector<TensorView> views_of(const std::vector<Tensor>& tensors) {
  const std::vector<int64_t> zeros(tensors.size());
  return make_views(tensors, zeros, zeros);
}

// Calls visit(index of the chunk, chunk, views) for every chunk of the tensors.
template <typename Visit>
void for_each_step_chunk(const std::vector<TensorView>& out, const std::vector<Tensor>& x,
                         const std::vector<Tensor>& y, const std::vector<Chunk>& chunks,
                         const Visit& visit) {
  const std::vector<TensorView> x_views = views_of(x);
  const std::vector<TensorView> y_views = views_of(y);
  for_each_chunk(chunks, kChunksPerThread, [&](int64_t c) {
    const auto t = static_cast<size_t>(chunks[c].tensor);
    visit(c, chunks[c], StepViews{out[t], x_views[t], y_views[t]});
  });
}

void direct_all(const std::vector<Tensor>& direction, const std::vector<Tensor>& before,
                const std::vector<Tensor>& after, const std::vector<double>& keep, double lr,
                Tensor& sums) {
  check_lists({"direction", direction}, {"before", before}, {"after", after});
  check_keep(keep, direction.size());
  const std::vector<TensorView> views = views_of(direction);
  const std::vector<Chunk> chunks = make_chunks(views);
  std::vector<StepSums> partial(chunks.size());
  for_each_step_chunk(
      views, before, after, chunks, [&](int64_t c, const Chunk& chunk, const StepViews& step) {
        partial[c] = kernels(step.out.dtype).direct(step, chunk, keep[chunk.tensor], lr);
      });
  StepSums total{};
  for (size_t c = 0; c < chunks.size();) {
    StepSums of_tensor{};
    for (const int64_t tensor = chunks[c].tensor; c < chunks.size() && chunks[c].tensor == tensor;
         ++c) {
      for (size_t k = 0; k < total.size(); ++k) {
        of_tensor[k] += partial[c][k];
      }
    }
    for (size_t k = 0; k < total.size(); ++k) {
      total[k] += of_tensor[k];
    }
  }
  std::copy(total.begin(), total.end(), sums.mutable_data_ptr<double>());
}

Tensor step_direction_(const std::vector<Tensor>& direction, const std::vector<Tensor>& before,
                       const std::vector<Tensor>& after, const std::vector<double>& keep,
                       const Tensor& lr) {
  check_number(lr, "lr", direction);
  Tensor sums = torch::stable::new_empty(lr, {3}, ScalarType::Double);
  direct_all(direction, before, after, keep, *lr.const_data_ptr<double>(), sums);
  return sums;
}

Tensor step_direction_number(const std::vector<Tensor>& direction,
                             const std::vector<Tensor>& before, const std::vector<Tensor>& after,
                             const std::vector<double>& keep, double lr) {
  check_not_empty(direction, "lr");
  check_lr(lr);
  Tensor sums = torch::stable::new_empty(direction[0], {3}, ScalarType::Double);
  direct_all(direction, before, after, keep, lr, sums);
  return sums;
}

void move_all(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
              const std::vector<Tensor>& direction, double distance) {
  check_lists({"parameters", parameters}, {"start", start}, {"direction", direction});
  const std::vector<TensorView> views = views_of(parameters);
  for_each_step_chunk(views, start, direction, make_chunks(views),
                      [&](int64_t, const Chunk& chunk, const StepViews& step) {
                        kernels(step.out.dtype).move(step, chunk, distance);
                      });
}

void move_(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
           const std::vector<Tensor>& direction, const Tensor& distance) {
  check_number(distance, "distance", parameters);
  move_all(parameters, start, direction, *distance.const_data_ptr<double>());
}

void move_number(const std::vector<Tensor>& parameters, const std::vector<Tensor>& start,
                 const std::vector<Tensor>& direction, double distance) {
  check_not_empty(parameters, "distance");
  check_distance(distance);
  move_all(parameters, start, direction, distance);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("step_direction_", TORCH_BOX(&step_direction_));
  m.impl("step_direction_.number", TORCH_BOX(&step_direction_number));
  m.impl("move_", TORCH_BOX(&move_));
  m.impl("move_.number", TORCH_BOX(&move_number));
}

}  // namespace metacurv
