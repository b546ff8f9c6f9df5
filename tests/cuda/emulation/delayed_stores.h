// Stores that other blocks see late. The kernels are compiled with ThreadSanitizer's
// instrumentation, which announces each store, and linked with the functions in delayed_stores.cpp
// instead of the sanitizer's own.
//
// One block runs at a time. While it does, memory has all that it stored; when another takes its
// turn, what the block stored and did not fence is taken back, some of it at random left in place.
// Stores of a block that has ended may stay away until the grid ends.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace emulation {

struct Thread;

struct Store {
  char* address;
  size_t bytes;
  const Thread* by;
  char value[16];  // what is not in memory: before the block's turn ends the old, then the new
};

// Of one block, in the order in which they came.
class PendingStores {
 public:
  // Before a store of the thread that runs.
  void announce(const Thread* by, void* address, size_t bytes);

  // What `by` stored is there for all.
  void publish(const Thread* by);

  void end_turn(std::mt19937_64& random);
  void begin_turn();

  // For a block that has had its last turn.
  void publish_all();

 private:
  void swap_with_memory(Store& store);

  std::vector<Store> stores_;
};

}  // namespace emulation
