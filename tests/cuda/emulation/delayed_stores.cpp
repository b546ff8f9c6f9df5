#include "delayed_stores.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "emulator.h"

namespace emulation {

void PendingStores::announce(const Thread* by, void* address, size_t bytes) {
  Store store{static_cast<char*>(address), bytes, by, {}};
  if (bytes > sizeof(store.value)) {
    return;
  }
  std::memcpy(store.value, address, bytes);
  stores_.push_back(store);
}

void PendingStores::publish(const Thread* by) {
  // Also what others of the block stored there: an older value must not come back over this one.
  std::vector<Store> left;
  for (const Store& store : stores_) {
    const auto covers = [&](const Store& other) {
      return other.by == by && other.address < store.address + store.bytes &&
             store.address < other.address + other.bytes;
    };
    if (std::none_of(stores_.begin(), stores_.end(), covers)) {
      left.push_back(store);
    }
  }
  stores_ = left;
}

void PendingStores::swap_with_memory(Store& store) {
  char now[sizeof(store.value)];
  std::memcpy(now, store.address, store.bytes);
  std::memcpy(store.address, store.value, store.bytes);
  std::memcpy(store.value, now, store.bytes);
}

void PendingStores::end_turn(std::mt19937_64& random) {
  if (random() % 4 == 0 && !stores_.empty()) {
    publish(stores_[random() % stores_.size()].by);  // memory got round to it
  }
  std::for_each(stores_.rbegin(), stores_.rend(), [&](Store& store) { swap_with_memory(store); });
}

void PendingStores::begin_turn() {
  for (Store& store : stores_) {
    swap_with_memory(store);
  }
}

void PendingStores::publish_all() {
  begin_turn();
  stores_.clear();
}

}  // namespace emulation

// What ThreadSanitizer's instrumentation calls. Loads are as they come.
extern "C" {

void emulation_announce(void* address, size_t bytes);

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void* address, size_t bytes) { emulation_announce(address, bytes); }

#define METACURV_ACCESSES(bytes)                                                  \
  void __tsan_read##bytes(void*) {}                                               \
  void __tsan_unaligned_read##bytes(void*) {}                                     \
  void __tsan_volatile_read##bytes(void*) {}                                      \
  void __tsan_write##bytes(void* address) { emulation_announce(address, bytes); } \
  void __tsan_unaligned_write##bytes(void* a) { emulation_announce(a, bytes); }   \
  void __tsan_volatile_write##bytes(void* a) { emulation_announce(a, bytes); }
METACURV_ACCESSES(1)
METACURV_ACCESSES(2)
METACURV_ACCESSES(4)
METACURV_ACCESSES(8)
METACURV_ACCESSES(16)
#undef METACURV_ACCESSES

// Atomics, of which emulator.h needs these, take place in memory at once.
#define METACURV_ATOMICS(bits)                                                                \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* a, int) {          \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                              \
  }                                                                                           \
  int __tsan_atomic##bits##_compare_exchange_strong(                                          \
      volatile uint##bits##_t* a, uint##bits##_t* expected, uint##bits##_t value, int, int) { \
    return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST,           \
                                       __ATOMIC_SEQ_CST);                                     \
  }
METACURV_ATOMICS(32)
METACURV_ATOMICS(64)

// Reference counts of shared pointers, in launch code.
int32_t __tsan_atomic32_fetch_add(volatile int32_t* a, int32_t value, int) {
  return __atomic_fetch_add(a, value, __ATOMIC_SEQ_CST);
}

#undef METACURV_ATOMICS
}
