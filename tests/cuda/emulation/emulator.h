// Runs thread blocks on the host, one fiber a thread. A fiber runs until it waits for others, so
// what a schedule can vary is which of the threads that may go on does so next: any order that
// barriers and shuffles allow is a schedule, also within a warp.
//
// Modelled: thread and block indices; barriers of blocks and warps, which all that a barrier counts
// must reach, at one place in the program; shuffles, whose lanes must all be in the mask, name the
// same mask and read only from lanes in it; shared memory, which begins as NaN and ones.
// With EMULATE_DELAYED_STORES (delayed_stores.h) also: stores to global memory that other blocks
// see late and out of order, until their thread has passed a __threadfence. Under ThreadSanitizer,
// with blocks on several host threads: races between blocks, atomics and fences being what orders
// them. Not modelled: warps in lockstep, loads from stale caches, weaker scopes and orders of
// atomics than "relaxed, device-wide", and stores through memcpy, which are never late.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

struct Index {
  uint32_t x;
};

struct Grid {
  uint32_t blocks, threads;
  size_t dynamic_shared = 0;  // bytes of `dynamic_shared` that the kernel may use
};

constexpr size_t kMostDynamicShared = 48 << 10;

struct Block;

// A thread of the block that runs.
struct Thread {
  Index thread_index, block_index;
  const Grid* grid;
  Block* block;
};

constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr uint32_t kWarpSize = 32;

extern thread_local Thread* current;

void block_barrier(const char* file, int line);
void warp_barrier(uint32_t mask, const char* file, int line);

// The 8 bytes that `lane` brings to this same shuffle.
uint64_t exchange(uint32_t mask, uint64_t bits, uint32_t lane, const char* file, int line);

template <typename T>
T shuffle(uint32_t mask, T value, int lane, const char* file, int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, static_cast<uint32_t>(lane) % kWarpSize, file, line);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

// Bit l: whether lane l of the mask brings true.
uint32_t ballot(uint32_t mask, bool value, const char* file, int line);

// What the thread stored before is seen by other blocks before what it stores after.
void fence();

// Stores update(*address) there at once, and returns what was there before.
template <typename T, typename Update>
T atomic_update(T* address, Update update) {
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  T after;
  do {
    after = update(before);
  } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
  return before;
}

// Lanes near the end keep what they have.
template <typename T>
T shuffle_down(uint32_t mask, T value, uint32_t delta, const char* file, int line) {
  const uint32_t lane = current->thread_index.x % kWarpSize;
  const uint32_t from = lane + delta < kWarpSize ? lane + delta : lane;
  return shuffle(mask, value, static_cast<int>(from), file, line);
}

// Lanes near the beginning keep what they have.
template <typename T>
T shuffle_up(uint32_t mask, T value, uint32_t delta, const char* file, int line) {
  const uint32_t lane = current->thread_index.x % kWarpSize;
  const uint32_t from = lane >= delta ? lane - delta : lane;
  return shuffle(mask, value, static_cast<int>(from), file, line);
}

template <typename T>
T shuffle_xor(uint32_t mask, T value, uint32_t bits, const char* file, int line) {
  const uint32_t lane = current->thread_index.x % kWarpSize;
  return shuffle(mask, value, static_cast<int>(lane ^ bits), file, line);
}

// Runs `body(argument)` in every thread of a grid. Returns: whether all went as CUDA wants it.
bool run_grid(Grid grid, void (*body)(const void*), const void* argument);

// What went wrong in the last grid that did.
const char* fault();

}  // namespace emulation
