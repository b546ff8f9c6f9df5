// rademacher_: every tensor of a list becomes probe `probe`, entries +1 and -1.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "chunks.h"

namespace metacurv {
namespace {

// `one`: the bit pattern of +1 in the tensor's dtype. Fill: one of the table's fills, over whole
// blocks.
template <typename Bits, typename Fill>
void fill_chunk(const TensorView& view, const SignStream& stream, const Chunk& chunk, Bits one,
                Fill fill) {
  Bits buffer[kBufferElements];
  Bits* data = static_cast<Bits*>(view.data);
  StridedCursor<Bits> cursor(view, chunk.begin - view.offset);
  const auto on_blocks = [&](int64_t begin, int64_t blocks) {
    fill(data + (begin - view.offset), stream, static_cast<uint64_t>(begin / kBlockElements),
         blocks, one);
  };
  const auto on_piece = [&](int64_t begin, int64_t end) {
    const int64_t first_block = begin / kBlockElements;
    const int64_t blocks = (end - 1) / kBlockElements - first_block + 1;
    const Bits* filled = buffer + begin % kBlockElements;
    fill(buffer, stream, static_cast<uint64_t>(first_block), blocks, one);
    if (view.is_contiguous()) {
      std::copy_n(filled, end - begin, data + (begin - view.offset));
    } else {
      cursor.write(filled, end - begin);
    }
  };
  split_chunk(view, chunk, on_blocks, on_piece);
}

void fill(const TensorView& view, const SignStream& stream, const Chunk& chunk) {
  switch (view.dtype) {
    case ScalarType::Float:
      return fill_chunk<uint32_t>(view, stream, chunk, 0x3f800000u, simd().fill_32);
    case ScalarType::Double:
      return fill_chunk<uint64_t>(view, stream, chunk, 0x3ff0000000000000u, simd().fill_64);
    case ScalarType::Half:
      return fill_chunk<uint16_t>(view, stream, chunk, 0x3c00u, simd().fill_16);
    default:  // BFloat16; make_views lets no other dtype through
      return fill_chunk<uint16_t>(view, stream, chunk, 0x3f80u, simd().fill_16);
  }
}

void fill_all(const std::vector<TensorView>& views, int64_t seed, uint32_t probe) {
  const std::vector<Chunk> chunks = make_chunks(views);
  for_each_chunk(chunks, 4, [&](int64_t c) {
    const Chunk& chunk = chunks[c];
    const TensorView& view = views[chunk.tensor];
    fill(view, sign_stream(static_cast<uint64_t>(seed), view.number, probe), chunk);
  });
}

void rademacher_(const std::vector<Tensor>& tensors, int64_t seed, const Tensor& probe,
                 const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  fill_all(make_views(tensors, probe, numbers, offsets), seed, read_probe(probe));
}

void rademacher_number(const std::vector<Tensor>& tensors, int64_t seed, int64_t probe,
                       const std::vector<int64_t>& numbers, const std::vector<int64_t>& offsets) {
  fill_all(make_views(tensors, numbers, offsets), seed, check_probe(probe));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metacurv, CPU, m) {
  m.impl("rademacher_", TORCH_BOX(&rademacher_));
  m.impl("rademacher_.number", TORCH_BOX(&rademacher_number));
}

}  // namespace metacurv
