// Cuts a list of tensors into kernel launches, as few as the room for kernel parameters allows.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../tensor_list.h"
#include "tensor_table.cuh"

namespace metacurv {

// tables: one launch each, of tables[l].tiles thread blocks.
// tile_begin: [T + 1]; tensor t has tiles tile_begin[t] ... tile_begin[t + 1] - 1, counted over all launches.
struct LaunchPlan {
  std::vector<TensorTable> tables;
  std::vector<uint32_t> tile_begin;

  int64_t tiles() const { return tile_begin.back(); }
};

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

inline LaunchPlan make_plan(const std::vector<TensorView>& views) {
  constexpr uint64_t kMostTiles = std::numeric_limits<int32_t>::max();  // CUDA's limit of a grid
  LaunchPlan plan;
  plan.tile_begin.push_back(0);
  uint32_t dimensions = 0;  // used of the last table
  for (const TensorView& view : views) {
    if (view.numel == 0) {
      plan.tile_begin.push_back(plan.tile_begin.back());
      continue;
    }
    TableTensor tensor = table_tensor(view);
    const uint64_t tiles = (tensor.end - 1) / kTileElements - tensor.begin / kTileElements + 1;
    STD_TORCH_CHECK(tiles <= kMostTiles - plan.tile_begin.back(), "metacurv: more than ",
                    kMostTiles, " tiles of ", kTileElements, " elements in one call");
    if (plan.tables.empty() || plan.tables.back().tensors == kTableTensors ||
        dimensions + tensor.dimensions > kTableDimensions) {
      plan.tables.emplace_back();
      dimensions = 0;
    }
    TensorTable& table = plan.tables.back();
    tensor.first_tile = table.tiles;
    tensor.first_dimension = static_cast<uint8_t>(dimensions);
    for (uint8_t d = 0; d < tensor.dimensions; ++d) {
      table.dimension[dimensions++] = {view.sizes[d], view.strides[d]};
    }
    table.tensor[table.tensors++] = tensor;
    table.tiles += static_cast<uint32_t>(tiles);
    plan.tile_begin.push_back(plan.tile_begin.back() + static_cast<uint32_t>(tiles));
  }
  return plan;
}

}  // namespace metacurv
