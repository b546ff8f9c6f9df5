// Philox4x32-10 and the Rademacher sign of one element: the random-number contract of metacurv.
//
// One header for g++, clang++ and nvcc, so that CPU and CUDA kernels cannot disagree. The contract:
//
//   key     = (low, high 32 bits of the seed)
//   counter = (low, high 32 bits of b, parameter number, probe number),  b = i / 128
//   sign of element i = bit (i % 32) of output word (i % 128) / 32;      1 means -1, 0 means +1
//
// where i is the row-major index of the element in the unsharded parameter.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define METACURV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define METACURV_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace metacurv {

// One Philox call serves this many elements, and one of its words this many.
constexpr int64_t kBlockElements = 128;
constexpr int64_t kWordElements = 32;
constexpr int kBlockWords = 4;

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

struct PhiloxKey {
  uint32_t word[2];
};

struct PhiloxBlock {
  uint32_t word[kBlockWords];
};

METACURV_HOST_DEVICE PhiloxBlock philox4x32_10(PhiloxBlock counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxM0) * counter.word[0];
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxM1) * counter.word[2];
    counter = {{
        static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0],
        static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
        static_cast<uint32_t>(product0),
    }};
    key.word[0] += kPhiloxW0;
    key.word[1] += kPhiloxW1;
  }
  return counter;
}

// What selects the signs of one tensor: everything in the contract except the element.
struct SignStream {
  PhiloxKey key;
  uint32_t number;  // parameter number
  uint32_t probe;   // probe number
};

METACURV_HOST_DEVICE SignStream sign_stream(uint64_t seed, uint32_t number, uint32_t probe) {
  return {{{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}}, number, probe};
}

// The 128 sign bits of elements [128 block, 128 block + 128).
METACURV_HOST_DEVICE PhiloxBlock sign_block(const SignStream& stream, uint64_t block) {
  const PhiloxBlock counter = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                stream.number, stream.probe}};
  return philox4x32_10(counter, stream.key);
}

}  // namespace metacurv
