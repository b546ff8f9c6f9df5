// Work is cut into chunks at fixed multiples of kChunkElements in the *global* index of each
// parameter, so neither the thread count nor the place where a parameter is sharded changes what is
// summed in which order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../philox.h"
#include "../tensor_list.h"
#include "simd.h"

namespace metacurv {

constexpr int64_t kChunkElements = 1 << 15;
// What strided tensors are copied through; a multiple of a block, so that pieces begin at blocks.
constexpr int64_t kBufferElements = 1024;

// Elements [begin, end) of one tensor, in global indices; all within one chunk.
struct Chunk {
  int64_t tensor;
  int64_t begin;
  int64_t end;
};

inline std::vector<Chunk> make_chunks(const std::vector<TensorView>& views) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < views.size(); ++t) {
    const int64_t last = views[t].offset + views[t].numel;
    for (int64_t begin = views[t].offset; begin < last;) {
      const int64_t end = std::min(last, (begin / kChunkElements + 1) * kChunkElements);
      chunks.push_back({static_cast<int64_t>(t), begin, end});
      begin = end;
    }
  }
  return chunks;
}

// The probe number in memory, modulo 2^32.
inline uint32_t read_probe(const Tensor& probe) {
  return static_cast<uint32_t>(*probe.const_data_ptr<int64_t>());
}

// Calls visit(index) for every chunk, over torch's threads where there is enough work to share.
template <typename Visit>
void for_each_chunk(const std::vector<Chunk>& chunks, int64_t chunks_per_thread,
                    const Visit& visit) {
  torch::stable::parallel_for(0, static_cast<int64_t>(chunks.size()), chunks_per_thread,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t c = begin; c < end; ++c) {
                                  visit(c);
                                }
                              });
}

// Splits a chunk into runs of whole blocks in contiguous memory, on_blocks(begin, blocks), and what
// has to go through a buffer, on_piece(begin, end): ragged ends, within one block, and strided
// tensors, within kBufferElements.
template <typename OnBlocks, typename OnPiece>
void split_chunk(const TensorView& view, const Chunk& chunk, const OnBlocks& on_blocks,
                 const OnPiece& on_piece) {
  const bool contiguous = view.is_contiguous();
  const int64_t limit = contiguous ? kBlockElements : kBufferElements;
  for (int64_t begin = chunk.begin; begin < chunk.end;) {
    const int64_t blocks = (chunk.end - begin) / kBlockElements;
    if (contiguous && begin % kBlockElements == 0 && blocks > 0) {
      on_blocks(begin, blocks);
      begin += blocks * kBlockElements;
    } else {
      const int64_t end = std::min(chunk.end, (begin / limit + 1) * limit);
      on_piece(begin, end);
      begin = end;
    }
  }
}

// Walks a strided tensor in logical (row-major) order and copies elements to or from a packed
// buffer. Only the bits matter, so T is an unsigned integer as wide as the element.
template <typename T>
class StridedCursor {
 public:
  StridedCursor(const TensorView& view, int64_t start)
      : view_(view), data_(static_cast<T*>(view.data)), index_(view.sizes.size()) {
    for (size_t d = view.sizes.size(); d-- > 0;) {
      index_[d] = start % view.sizes[d];
      start /= view.sizes[d];
    }
  }

  void read(T* packed, int64_t n) {
    advance(n, [packed](T* element, int64_t stride, int64_t done, int64_t run) {
      for (int64_t i = 0; i < run; ++i) {
        packed[done + i] = element[i * stride];
      }
    });
  }

  void write(const T* packed, int64_t n) {
    advance(n, [packed](T* element, int64_t stride, int64_t done, int64_t run) {
      for (int64_t i = 0; i < run; ++i) {
        element[i * stride] = packed[done + i];
      }
    });
  }

 private:
  // Splits the next n elements into runs along the innermost dimension.
  template <typename Move>
  void advance(int64_t n, const Move& move) {
    const size_t inner = view_.sizes.size() - 1;
    for (int64_t done = 0; done < n;) {
      const int64_t run = std::min(n - done, view_.sizes[inner] - index_[inner]);
      int64_t position = 0;
      for (size_t d = 0; d <= inner; ++d) {
        position += index_[d] * view_.strides[d];
      }
      move(data_ + position, view_.strides[inner], done, run);
      done += run;
      index_[inner] += run;
      for (size_t d = inner; d > 0 && index_[d] == view_.sizes[d]; --d) {
        index_[d] = 0;
        ++index_[d - 1];
      }
    }
  }

  const TensorView& view_;
  T* data_;
  std::vector<int64_t> index_;
};

}  // namespace metacurv
