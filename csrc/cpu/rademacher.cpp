// rademacher_: every tensor of a list becomes probe `probe`, entries +1 and -1.
#include <torch/csrc/stable/library.h>

#include "chunks.h"

namespace metacurv {
namespace {

// Nothing is summed here, so chunks can be smaller than signed_sum's: making signs then overlaps
// with the stores of the chunk before.
constexpr int64_t kFillElements = 4096;

void fill_rows(uint16_t* x, const uint32_t* words, int64_t rows, uint16_t one) {
  simd().fill_16(x, words, rows, one);
}
void fill_rows(uint32_t* x, const uint32_t* words, int64_t rows, uint32_t one) {
  simd().fill_32(x, words, rows, one);
}
void fill_rows(uint64_t* x, const uint32_t* words, int64_t rows, uint64_t one) {
  simd().fill_64(x, words, rows, one);
}

// `one`: the bit pattern of +1 in the tensor's dtype.
template <typename Bits>
void fill_chunk(const TensorView& view, const ChunkSigns& signs, const Chunk& chunk, Bits one) {
  constexpr int64_t kBufferRows = 32;
  Bits buffer[kBufferRows * kWordElements];
  const bool contiguous = view.is_contiguous();
  Bits* data = static_cast<Bits*>(view.data);
  StridedCursor<Bits> cursor(view, chunk.begin - view.offset);
  for (int64_t begin = chunk.begin; begin < chunk.end;) {
    const int64_t row = begin / kWordElements;
    const int64_t lead = begin % kWordElements;
    const int64_t whole_rows = (chunk.end - begin) / kWordElements;
    if (contiguous && lead == 0 && whole_rows > 0) {
      fill_rows(data + (begin - view.offset), signs.row(row), whole_rows, one);
      begin += whole_rows * kWordElements;
      continue;
    }
    // Ragged ends and strided tensors go through a buffer of whole rows; a ragged end of a
    // contiguous tensor is one row.
    const int64_t rows = contiguous ? 1 : kBufferRows;
    const int64_t end = std::min(chunk.end, (row + rows) * kWordElements);
    const int64_t used_rows = (end - 1) / kWordElements - row + 1;
    fill_rows(buffer, signs.row(row), used_rows, one);
    if (contiguous) {
      std::memcpy(data + (begin - view.offset), buffer + lead,
                  static_cast<size_t>(end - begin) * sizeof(Bits));
    } else {
      cursor.write(buffer + lead, end - begin);
    }
    begin = end;
  }
}

void fill(const TensorView& view, const ChunkSigns& signs, const Chunk& chunk) {
  switch (view.dtype) {
    case ScalarType::Float:
      return fill_chunk<uint32_t>(view, signs, chunk, 0x3f800000u);
    case ScalarType::Double:
      return fill_chunk<uint64_t>(view, signs, chunk, 0x3ff0000000000000u);
    case ScalarType::Half:
      return fill_chunk<uint16_t>(view, signs, chunk, 0x3c00u);
    default:  // BFloat16; make_views lets no other dtype through
      return fill_chunk<uint16_t>(view, signs, chunk, 0x3f80u);
  }
}

void rademacher_(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                 const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  const std::vector<TensorView> views = make_views(tensors, probe, numbers, offsets);
  const std::vector<Chunk> chunks = make_chunks(views, kFillElements);
  const auto probe_number = static_cast<uint32_t>(*probe.const_data_ptr<int64_t>());
  for_each_chunk(chunks, 32, [&](int64_t c) {
    const Chunk& chunk = chunks[c];
    const TensorView& view = views[chunk.tensor];
    const SignStream stream = sign_stream(static_cast<uint64_t>(seed), view.number, probe_number);
    fill(view, ChunkSigns(stream, chunk), chunk);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) { m.impl("rademacher_", TORCH_BOX(&rademacher_)); }

}  // namespace metacurv
