// Kernel of softmax_factor: u = root (t - t^2 sum_c t) with t = sqrt_p v. A row is read twice, the
// second time from cache where it fits; its signs are made twice only where they take many words.
#pragma once

#include <cstdint>

#include "elements.cuh"
#include "warp.cuh"
#include "warp_tile.cuh"

namespace metacurv {

constexpr int kFactorWarps = 8;
constexpr int kFactorThreads = kFactorWarps * kWarpThreads;

// What a warp makes the signs of at a time.
constexpr int kPieceBlocks = 8;
constexpr int kPieceWords = kPieceBlocks * kBlockWords;
constexpr int64_t kPieceElements = kPieceBlocks * kBlockElements;

// Rows of at least this many elements get a thread block each, shorter ones a warp.
constexpr int64_t kLongRow = 2 * kPieceElements;

// sqrt_p: [rows, cols]; root: [rows]; u: [draws, rows, cols]; draw k has probe number *probe + k.
template <typename T>
struct FactorArguments {
  const T* sqrt_p;
  const T* root;
  T* u;
  int64_t draws;
  int64_t rows;
  int64_t cols;
  SignSource source;
  uint32_t number;
};

// The sign words of one piece, in this warp's row of `words`: 16-byte aligned, no other warp's.
struct SignPiece {
  SignStream stream;
  uint32_t (&words)[kFactorWarps][kPieceWords];
  uint64_t block;  // the first of those whose words are held
  bool empty;

  // The whole warp must call it.
  __device__ __forceinline__ void hold(uint64_t first_block) {
    if (!empty && block == first_block) {
      return;
    }
    __syncwarp();  // the warp may still be reading words of the piece before
    if (lane_index() < kPieceBlocks) {
      const PhiloxBlock made =
          sign_block(stream, first_block + static_cast<uint64_t>(lane_index()));
      Pack<uint32_t> pack;
      for (int w = 0; w < kBlockWords; ++w) {
        pack.element[w] = made.word[w];
      }
      reinterpret_cast<Pack<uint32_t>&>(words[warp_index()][kBlockWords * lane_index()]) = pack;
    }
    __syncwarp();
    block = first_block;
    empty = false;
  }
};

// Calls visit(c, sign) for this thread's share of columns c of the row whose first element has
// index `begin` in the parameter; the top bit of `sign` is the element's. A team of kTeamWarps
// warps takes the row in turns of a piece.
template <int kTeamWarps, typename Visit>
__device__ __forceinline__ void visit_row(SignPiece& piece, int64_t begin, int64_t cols,
                                          const Visit& visit) {
  const int64_t end = begin + cols;
  const int lane = lane_index();
  int64_t origin = begin / kBlockElements * kBlockElements +
                   static_cast<int64_t>(warp_index() % kTeamWarps) * kPieceElements;
#pragma unroll 1
  for (; origin < end; origin += kTeamWarps * kPieceElements) {
    piece.hold(static_cast<uint64_t>(origin / kBlockElements));
    const int64_t start = origin - begin;  // below 0 where the row starts within the piece
    const int first = start < 0 ? static_cast<int>(-start) : 0;
    const int last =
        static_cast<int>(end - origin < kPieceElements ? end - origin : kPieceElements);
#pragma unroll 4
    for (int step = 0; step < kPieceWords; ++step) {
      const int i = step * kWarpThreads + lane;
      if (i >= first && i < last) {
        visit(start + i, piece.words[warp_index()][step] << (kWarpThreads - 1 - lane));
      }
    }
  }
}

// The sum of `value` over a team, in all of its threads.
template <int kTeamWarps>
__device__ __forceinline__ double team_sum(double value, double (&warp_sums)[kFactorWarps]) {
  if constexpr (kTeamWarps == 1) {
    return __shfl_sync(0xffffffffu, warp_sum(value), 0);
  } else {
    static_assert(kTeamWarps == kFactorWarps, "a team is a warp or the thread block");
    __shared__ double total;
    const double sum = block_sum(value, warp_sums);
    if (threadIdx.x == 0) {
      total = sum;
    }
    __syncthreads();
    return total;
  }
}

// Grid: one team for each of draws * rows. Four thread blocks at a time leave 64 registers a
// thread; left to itself ptxas 13.0 aims at 48 on some architectures, and spills.
template <typename T, int kTeamWarps>
__global__ void __launch_bounds__(kFactorThreads, 4)
    softmax_factor_kernel(const FactorArguments<T> arguments) {
  alignas(16) __shared__ uint32_t words[kFactorWarps][kPieceWords];
  __shared__ double warp_sums[kFactorWarps];
  constexpr int kTeams = kFactorWarps / kTeamWarps;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kTeams + warp_index() / kTeamWarps;
  const int64_t draw = index / arguments.rows;
  if (draw >= arguments.draws) {
    return;  // a whole team
  }
  const int64_t row = index - draw * arguments.rows;
  const int64_t begin = row * arguments.cols;
  const T* const in = arguments.sqrt_p + begin;
  T* const out = arguments.u + index * arguments.cols;
  const auto probe = static_cast<uint32_t>(*arguments.source.probe + draw);
  SignPiece piece{sign_stream(arguments.source.seed, arguments.number, probe), words, 0, true};

  double partial = 0.0;
  visit_row<kTeamWarps>(piece, begin, arguments.cols, [&](int64_t c, uint32_t sign) {
    partial += static_cast<double>(flip(in[c], sign));
  });
  const T sum = static_cast<T>(team_sum<kTeamWarps>(partial, warp_sums));
  const T scale = arguments.root[row];
  visit_row<kTeamWarps>(piece, begin, arguments.cols, [&](int64_t c, uint32_t sign) {
    const T t = flip(in[c], sign);
    out[c] = scale * (t - t * t * sum);
  });
}

}  // namespace metacurv
