// signed_sum: sum of v_i x_i per tensor, the signs v made in registers from the counter.
// hutchinson_accumulate_: the same sums folded into a running mean and M2 (Welford 1962).
//
// Order of summation, fixed and equal to the torch twin's (metacurv/ops/_reference): within a
// chunk, lane i % 32 adds its elements in index order in float64; the 32 lanes are halved as a
// tree; chunks are added in order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "chunks.h"

namespace metacurv {
namespace {

// Sum: one of the table's sums, over whole blocks of storage type T.
template <typename T, typename Sum>
double sum_chunk(const TensorView& view, const SignStream& stream, const Chunk& chunk, Sum sum) {
  std::array<double, kWordElements> lanes{};
  T buffer[kBufferElements];
  const T* data = static_cast<const T*>(view.data);
  StridedCursor<T> cursor(view, chunk.begin - view.offset);
  const auto on_blocks = [&](int64_t begin, int64_t blocks) {
    sum(data + (begin - view.offset), stream, static_cast<uint64_t>(begin / kBlockElements), blocks,
        lanes.data());
  };
  // The buffer is padded with zeros to whole blocks; they add nothing.
  const auto on_piece = [&](int64_t begin, int64_t end) {
    const int64_t first_block = begin / kBlockElements;
    const int64_t blocks = (end - 1) / kBlockElements - first_block + 1;
    const int64_t lead = begin % kBlockElements;
    std::fill_n(buffer, lead, T{0});
    std::fill(buffer + lead + (end - begin), buffer + blocks * kBlockElements, T{0});
    if (view.is_contiguous()) {
      std::copy_n(data + (begin - view.offset), end - begin, buffer + lead);
    } else {
      cursor.read(buffer + lead, end - begin);
    }
    sum(buffer, stream, static_cast<uint64_t>(first_block), blocks, lanes.data());
  };
  split_chunk(view, chunk, on_blocks, on_piece);
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
void sum_all(const std::vector<TensorView>& views, int64_t seed, uint32_t probe, double* sums) {
  const std::vector<Chunk> chunks = make_chunks(views);
  std::vector<double> partial(chunks.size());
  for_each_chunk(chunks, 4, [&](int64_t c) {
    const Chunk& chunk = chunks[c];
    const TensorView& view = views[chunk.tensor];
    partial[c] = sum(view, sign_stream(static_cast<uint64_t>(seed), view.number, probe), chunk);
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
  sum_all(make_views(tensors, probe, numbers, offsets), seed, read_probe(probe),
          sums.mutable_data_ptr<double>());
  return sums;
}

Tensor signed_sum_number(const std::vector<Tensor>& tensors, int64_t seed, int64_t probe,
                         const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  Tensor sums = torch::stable::new_empty(tensors[0], {static_cast<int64_t>(tensors.size())},
                                         ScalarType::Double);
  sum_all(make_views(tensors, numbers, offsets), seed, check_probe(probe),
          sums.mutable_data_ptr<double>());
  return sums;
}

void hutchinson_accumulate_(const Tensor& mean, const Tensor& m2, const Tensor& count,
                            const std::vector<Tensor>& products, int64_t seed, const Tensor& probe,
                            const std::vector<int64_t>& numbers,
                            const std::vector<int64_t>& offsets) {
  check_statistics(mean, m2, count, probe, products.size());
  std::vector<double> samples(products.size() + 1);
  sum_all(make_views(products, probe, numbers, offsets), seed, read_probe(probe), samples.data());
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
  m.impl("signed_sum.number", TORCH_BOX(&signed_sum_number));
  m.impl("hutchinson_accumulate_", TORCH_BOX(&hutchinson_accumulate_));
}

}  // namespace metacurv
