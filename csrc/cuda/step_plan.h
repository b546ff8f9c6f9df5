// Cuts lists of tensors into launches of the kernels in step_line.cuh.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "launch_plan.h"
#include "step_line.cuh"

namespace metacurv {

// Whether the elements fill their memory without gaps.
inline bool is_dense(const Tensor& tensor) {
  int64_t reach = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    reach += (tensor.size(d) - 1) * tensor.stride(d);
  }
  return reach == tensor.numel();
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

// The launches of one op call. The kernels know no strides: tensors in which elements do not lie
// in one common order without gaps are packed before, and the results copied back after.
class StepPlan {
 public:
  // keep: one entry per tensor, or none.
  StepPlan(const std::vector<Tensor>& out, const std::vector<Tensor>& x,
           const std::vector<Tensor>& y, const std::vector<double>& keep) {
    for (size_t t = 0; t < out.size(); ++t) {
      if (out[t].numel() > 0) {
        append(out[t], x[t], y[t], keep.empty() ? 1.0 : keep[t]);
      }
    }
  }

  // One launch each, of as many thread blocks as the table has tiles.
  const std::vector<StepTable>& tables() const { return tables_; }
  uint32_t tiles() const { return tiles_; }

  // To be called after the launches.
  void copy_back() const {
    for (const auto& [packed_out, out] : packed_) {
      Tensor target = out;
      torch::stable::copy_(target, packed_out);
    }
  }

 private:
  void append(const Tensor& out, const Tensor& x, const Tensor& y, double keep) {
    if (is_dense(out) && same_strides(out, x) && same_strides(out, y)) {
      append_entry(out, x, y, keep);
      return;
    }
    Tensor packed_out = torch::stable::new_empty(out, out.sizes());
    inputs_.push_back(packed(x));
    inputs_.push_back(packed(y));
    append_entry(packed_out, inputs_[inputs_.size() - 2], inputs_.back(), keep);
    packed_.emplace_back(std::move(packed_out), out);
  }

  void append_entry(const Tensor& out, const Tensor& x, const Tensor& y, double keep) {
    constexpr uint64_t kMostTiles = std::numeric_limits<int32_t>::max();  // CUDA's limit of a grid
    const auto numel = static_cast<uint64_t>(out.numel());
    const uint64_t tiles = (numel - 1) / kTileElements + 1;
    STD_TORCH_CHECK(tiles <= kMostTiles - tiles_, "metacurv: more than ", kMostTiles, " tiles of ",
                    kTileElements, " elements in one call");
    if (tables_.empty() || tables_.back().tensors == kStepTensors) {
      tables_.emplace_back();
    }
    StepTable& table = tables_.back();
    const auto addresses = reinterpret_cast<uintptr_t>(out.data_ptr()) |
                           reinterpret_cast<uintptr_t>(x.data_ptr()) |
                           reinterpret_cast<uintptr_t>(y.data_ptr());
    table.tensor[table.tensors++] = {out.data_ptr(),
                                     x.data_ptr(),
                                     y.data_ptr(),
                                     numel,
                                     keep,
                                     table.tiles,
                                     element_type(out.scalar_type()),
                                     addresses % 16 == 0};
    table.tiles += static_cast<uint32_t>(tiles);
    tiles_ += static_cast<uint32_t>(tiles);
  }

  std::vector<StepTable> tables_;
  uint32_t tiles_ = 0;
  std::vector<Tensor> inputs_;                     // keeps packed copies alive until the launches
  std::vector<std::pair<Tensor, Tensor>> packed_;  // result and where it belongs
};

}  // namespace metacurv
