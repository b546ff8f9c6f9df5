// signed_sum: sum of v_i x_i per tensor, the signs v made in registers from the counter.
// hutchinson_accumulate_: the same sums folded into a running mean and M2 (Welford 1962).
//
// Order of summation, fixed and equal to the torch twin's (metacurv/_reference.py): within a chunk,
// lane i % 32 adds its elements in index order in float64; the 32 lanes are halved as a tree;
// chunks are added in order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "chunks.h"

namespace metacurv {
namespace {

// Signs are made for this many elements at a time: short enough that making them overlaps with the
// loads of the elements before. Whole rows, so it does not touch the order of summation.
constexpr int64_t kPieceElements = 4096;

// Adds the elements of `piece` to the 32 lanes. SumRows: adds whole rows of storage type T.
template <typename T, typename SumRows>
void add_piece(const TensorView& view, const ChunkSigns& signs, const Chunk& piece,
               SumRows sum_rows, double* lanes) {
  constexpr int64_t kBufferRows = 32;
  T buffer[kBufferRows * kWordElements];
  const bool contiguous = view.is_contiguous();
  const T* data = static_cast<const T*>(view.data);
  StridedCursor<T> cursor(view, piece.begin - view.offset);
  for (int64_t begin = piece.begin; begin < piece.end;) {
    const int64_t row = begin / kWordElements;
    const int64_t lead = begin % kWordElements;
    const int64_t whole_rows = (piece.end - begin) / kWordElements;
    if (contiguous && lead == 0 && whole_rows > 0) {
      sum_rows(data + (begin - view.offset), signs.row(row), whole_rows, lanes);
      begin += whole_rows * kWordElements;
      continue;
    }
    // Ragged ends and strided tensors go through a buffer of whole rows, padded with zeros, which
    // add nothing.
    const int64_t rows = contiguous ? 1 : kBufferRows;
    const int64_t end = std::min(piece.end, (row + rows) * kWordElements);
    const int64_t used_rows = (end - 1) / kWordElements - row + 1;
    std::fill_n(buffer, lead, T{0});
    std::fill(buffer + lead + (end - begin), buffer + used_rows * kWordElements, T{0});
    if (contiguous) {
      std::memcpy(buffer + lead, data + (begin - view.offset),
                  static_cast<size_t>(end - begin) * sizeof(T));
    } else {
      cursor.read(buffer + lead, end - begin);
    }
    sum_rows(buffer, signs.row(row), used_rows, lanes);
    begin = end;
  }
}

template <typename T, typename SumRows>
double sum_chunk(const TensorView& view, const SignStream& stream, const Chunk& chunk,
                 SumRows sum_rows) {
  std::array<double, kWordElements> lanes{};
  for (int64_t begin = chunk.begin; begin < chunk.end;) {
    const int64_t end = std::min(chunk.end, (begin / kPieceElements + 1) * kPieceElements);
    const Chunk piece = {chunk.tensor, begin, end};
    add_piece<T>(view, ChunkSigns(stream, piece), piece, sum_rows, lanes.data());
    begin = end;
  }
  for (int64_t half = kWordElements / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) {
      lanes[k] += lanes[k + half];
    }
  }
  return lanes[0];
}

double sum(const TensorView& view, const SignStream& stream, const Chunk& chunk) {
  switch (view.dtype) {
    case ScalarType::Float:
      return sum_chunk<float>(view, stream, chunk, simd().sum_f32);
    case ScalarType::Double:
      return sum_chunk<double>(view, stream, chunk, simd().sum_f64);
    case ScalarType::Half:
      return sum_chunk<uint16_t>(view, stream, chunk, simd().sum_f16);
    default:  // BFloat16; make_views lets no other dtype through
      return sum_chunk<uint16_t>(view, stream, chunk, simd().sum_bf16);
  }
}

// sums: [T] float64.
void signed_sums(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                 const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets,
                 double* sums) {
  const std::vector<TensorView> views = make_views(tensors, probe, numbers, offsets);
  const std::vector<Chunk> chunks = make_chunks(views);
  const auto probe_number = static_cast<uint32_t>(*probe.const_data_ptr<int64_t>());
  std::vector<double> partial(chunks.size());
  for_each_chunk(chunks, 4, [&](int64_t c) {
    const Chunk& chunk = chunks[c];
    const TensorView& view = views[chunk.tensor];
    const SignStream stream = sign_stream(static_cast<uint64_t>(seed), view.number, probe_number);
    partial[c] = sum(view, stream, chunk);
  });
  std::fill_n(sums, views.size(), 0.0);
  for (size_t c = 0; c < chunks.size(); ++c) {
    sums[chunks[c].tensor] += partial[c];
  }
}

Tensor signed_sum(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                  const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  Tensor sums =
      torch::stable::new_empty(probe, {static_cast<int64_t>(tensors.size())}, ScalarType::Double);
  signed_sums(tensors, seed, probe, numbers, offsets, sums.mutable_data_ptr<double>());
  return sums;
}

void hutchinson_accumulate_(const Tensor& mean, const Tensor& m2, const Tensor& count,
                            const std::vector<Tensor>& products, int64_t seed, const Tensor& probe,
                            const std::vector<int64_t>& numbers,
                            const std::vector<int64_t>& offsets) {
  check_statistics(mean, m2, count, probe, products.size());
  std::vector<double> samples(products.size() + 1);
  signed_sums(products, seed, probe, numbers, offsets, samples.data());
  for (size_t t = 0; t < products.size(); ++t) {
    samples.back() += samples[t];
  }
  auto* means = mean.mutable_data_ptr<double>();
  auto* m2s = m2.mutable_data_ptr<double>();
  const int64_t n = ++*count.mutable_data_ptr<int64_t>();
  for (size_t t = 0; t < samples.size(); ++t) {
    const double delta = samples[t] - means[t];
    means[t] += delta / static_cast<double>(n);
    m2s[t] += delta * (samples[t] - means[t]);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("signed_sum", TORCH_BOX(&signed_sum));
  m.impl("hutchinson_accumulate_", TORCH_BOX(&hutchinson_accumulate_));
}

}  // namespace metacurv
