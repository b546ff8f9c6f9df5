// Cuts a list of tensors into kernel launches, as few as the room for kernel parameters allows.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../tensor_list.h"
#include "tensor_table.cuh"

namespace metacurv {

inline ElementType element_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return ElementType::kFloat32;
    case ScalarType::Double:
      return ElementType::kFloat64;
    case ScalarType::Half:
      return ElementType::kFloat16;
    default:  // make_views lets no other dtype through
      return ElementType::kBFloat16;
  }
}

inline uint64_t element_bytes(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

inline TableTensor table_tensor(const TensorView& view) {
  TableTensor tensor{};
  tensor.data = view.data;
  tensor.begin = static_cast<uint64_t>(view.offset);
  tensor.end = tensor.begin + static_cast<uint64_t>(view.numel);
  tensor.number = view.number;
  tensor.type = element_type(view.dtype);
  // Where global element 0 would lie, modulo 2^64: only the remainder by 16 matters.
  const uint64_t origin =
      reinterpret_cast<uintptr_t>(view.data) - tensor.begin * element_bytes(view.dtype);
  tensor.packed = view.is_contiguous() && origin % 16 == 0;
  tensor.dimensions = view.is_contiguous() ? 0 : static_cast<uint8_t>(view.sizes.size());
  return tensor;
}

// The launches of one op call.
class LaunchPlan {
 public:
  explicit LaunchPlan(const std::vector<TensorView>& views) {
    tile_begin_.push_back(0);
    for (const TensorView& view : views) {
      tile_begin_.push_back(tile_begin_.back());
      if (view.numel > 0) {
        append(view);
      }
    }
  }

  // One launch each, of as many thread blocks as the table has tiles.
  const std::vector<TensorTable>& tables() const { return tables_; }

  // [T + 1]: tensor t has tiles tile_begin[t] ... tile_begin[t + 1] - 1, counted over all launches.
  const std::vector<uint32_t>& tile_begin() const { return tile_begin_; }

 private:
  // The kernels divide positions in strided tensors in 32 bits, so larger ones are cut in two until
  // they fit.
  void append(const TensorView& view) {
    if (view.is_contiguous() || view.numel <= std::numeric_limits<uint32_t>::max()) {
      append_entry(view);
      return;
    }
    const auto bytes = static_cast<int64_t>(element_bytes(view.dtype));
    TensorView head = view;
    head.sizes[0] /= 2;
    head.numel = view.numel / view.sizes[0] * head.sizes[0];
    TensorView tail = view;
    tail.sizes[0] -= head.sizes[0];
    tail.numel -= head.numel;
    tail.offset += head.numel;
    tail.data = static_cast<char*>(view.data) + head.sizes[0] * view.strides[0] * bytes;
    for (TensorView* part : {&head, &tail}) {
      if (part->sizes[0] == 1) {
        part->sizes.erase(part->sizes.begin());
        part->strides.erase(part->strides.begin());
      }
      append(*part);
    }
  }

  void append_entry(const TensorView& view) {
    constexpr uint64_t kMostTiles = std::numeric_limits<int32_t>::max();  // CUDA's limit of a grid
    TableTensor tensor = table_tensor(view);
    const uint64_t tiles = (tensor.end - 1) / kTileElements - tensor.begin / kTileElements + 1;
    STD_TORCH_CHECK(tiles <= kMostTiles - tile_begin_.back(), "metacurv: more than ", kMostTiles,
                    " tiles of ", kTileElements, " elements in one call");
    if (tables_.empty() || tables_.back().tensors == kTableTensors ||
        dimensions_ + tensor.dimensions > kTableDimensions) {
      tables_.emplace_back();
      dimensions_ = 0;
    }
    TensorTable& table = tables_.back();
    tensor.first_tile = table.tiles;
    tensor.first_dimension = static_cast<uint8_t>(dimensions_);
    for (uint8_t d = 0; d < tensor.dimensions; ++d) {
      table.dimension[dimensions_++] = {view.strides[d], static_cast<uint32_t>(view.sizes[d])};
    }
    table.tensor[table.tensors++] = tensor;
    table.tiles += static_cast<uint32_t>(tiles);
    tile_begin_.back() += static_cast<uint32_t>(tiles);
  }

  std::vector<TensorTable> tables_;
  std::vector<uint32_t> tile_begin_;
  uint32_t dimensions_ = 0;  // taken of the last table
};

}  // namespace metacurv
