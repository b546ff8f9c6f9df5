// The scheduler of emulator.h. Compiled without ThreadSanitizer's instrumentation: what it does is
// not the kernels' doing, and it tells the sanitizer itself which orders barriers make.
#include "emulator.h"

#include <dlfcn.h>
#include <link.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "delayed_stores.h"

#if defined(EMULATE_UNDER_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
constexpr unsigned kNoSync = 1;
#endif

namespace metacurv {
alignas(16) extern thread_local char dynamic_shared[emulation::kMostDynamicShared];
alignas(16) thread_local char dynamic_shared[emulation::kMostDynamicShared];
}  // namespace metacurv

namespace emulation {

thread_local Thread* current = nullptr;

namespace {

enum class Order { kAscending, kDescending, kRandom };
enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kEnded };

// Set from Python, before ops run.
struct Schedule {
  Order order = Order::kAscending;
  uint64_t seed = 0;
  uint32_t resident = 1;  // blocks that take turns on a host thread
  uint32_t workers = 1;   // host threads
};
Schedule schedule;

// Set from Python too: of every grid, these blocks alone, or all.
bool all_blocks = true;
std::vector<uint32_t> some_blocks;

std::string last_fault;
std::vector<Grid> launches;

constexpr size_t kStackBytes = 128 << 10;

// What a fiber runs on; it serves one thread after the other.
struct Seat {
  std::unique_ptr<char[]> stack;
#if defined(EMULATE_UNDER_TSAN)
  void* sanitizer = nullptr;
#endif
};

struct Fiber : Thread {
  ucontext_t context;
  Seat seat;
  State state = State::kReady;
  const char* file = nullptr;  // where it waits
  int line = 0;
  uint32_t mask = 0;
  // Of a shuffle: what it brings, the lane it reads from, what that brought, and who brought other
  // than 0.
  uint64_t brought = 0;
  uint32_t from = 0;
  uint64_t received = 0;
  uint32_t votes = 0;
};

// Barriers order what was before them and what comes after; tags alternate, or an early thread's
// next barrier would count as this one.
struct Tags {
  char tag[2];
  uint32_t generation = 0;
};

// The shared variables of all kernels on this host thread: the thread-local memory of this library.
struct SharedMemory {
  char* begin = nullptr;
  size_t bytes = 0;
};

}  // namespace

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Tags> warps;
  Tags all;
  // Not one tag, or a thread that starts would come after all that have ended.
  Tags launched, ended;
  std::vector<char> shared;  // its shared memory while another block has the place
  ucontext_t scheduler;
  void (*body)(const void*);
  const void* argument;
  std::string fault;
#if defined(EMULATE_DELAYED_STORES)
  PendingStores stores;
  SharedMemory shared_place;
#endif
#if defined(EMULATE_UNDER_TSAN)
  void* sanitizer = nullptr;
#endif
};

namespace {

#if defined(EMULATE_UNDER_TSAN)
char fences;  // order all that passes them
#endif

Fiber* running() { return static_cast<Fiber*>(current); }

void acquire([[maybe_unused]] Tags& tags, [[maybe_unused]] uint32_t generation) {
#if defined(EMULATE_UNDER_TSAN)
  __tsan_acquire(&tags.tag[generation % 2]);
#endif
}

void release([[maybe_unused]] Tags& tags, [[maybe_unused]] uint32_t generation) {
#if defined(EMULATE_UNDER_TSAN)
  __tsan_release(&tags.tag[generation % 2]);
#endif
}

// Back to the block's scheduler; returns when the fiber is resumed.
void yield() {
  Fiber* fiber = running();
#if defined(EMULATE_UNDER_TSAN)
  __tsan_switch_to_fiber(fiber->block->sanitizer, kNoSync);
#endif
  swapcontext(&fiber->context, &fiber->block->scheduler);
}

[[noreturn]] void fail(const std::string& what) {
  Fiber* fiber = running();
  fiber->block->fault = "thread " + std::to_string(fiber->thread_index.x) + " of block " +
                        std::to_string(fiber->block_index.x) + ": " + what;
  yield();
  std::abort();  // a block with a fault is not resumed
}

std::string place(const Fiber& fiber) {
  const char* name = std::strrchr(fiber.file, '/');
  return std::string(name == nullptr ? fiber.file : name + 1) + ":" + std::to_string(fiber.line);
}

void start(unsigned low, unsigned high) {
  const auto* fiber = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
  Block* block = fiber->block;
  acquire(block->launched, 0);
  block->body(block->argument);
  release(block->ended, 0);
  running()->state = State::kEnded;
  yield();
}

// `seats`: of threads that have ended.
void make_fiber(Fiber& fiber, Block& block, std::vector<Seat>& seats) {
  fiber.block = &block;
  if (seats.empty()) {
    seats.emplace_back();
    seats.back().stack.reset(new char[kStackBytes]);
#if defined(EMULATE_UNDER_TSAN)
    seats.back().sanitizer = __tsan_create_fiber(0);
#endif
  }
  fiber.seat = std::move(seats.back());
  seats.pop_back();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.seat.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  const auto address = reinterpret_cast<uintptr_t>(&fiber);
  makecontext(&fiber.context, reinterpret_cast<void (*)()>(start), 2,
              static_cast<unsigned>(address), static_cast<unsigned>(address >> 32));
}

int find_shared_memory(dl_phdr_info* info, size_t, void* found) {
  Dl_info here{};
  dladdr(reinterpret_cast<void*>(&find_shared_memory), &here);
  if (reinterpret_cast<void*>(info->dlpi_addr) != here.dli_fbase) {
    return 0;
  }
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type == PT_TLS) {
      *static_cast<SharedMemory*>(found) = {static_cast<char*>(info->dlpi_tls_data),
                                            info->dlpi_phdr[i].p_memsz};
    }
  }
  return 1;
}

SharedMemory shared_memory() {
  current = nullptr;  // makes it, on a new host thread
  SharedMemory found;
  dl_iterate_phdr(find_shared_memory, &found);
  return found;
}

bool same_place(const Fiber& a, const Fiber& b) { return a.file == b.file && a.line == b.line; }

// Lets a block go on whose threads all wait at one barrier. Returns: whether they did.
bool release_block(Block& block) {
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBlockBarrier || !same_place(fiber, block.fibers[0])) {
      return false;
    }
  }
  ++block.all.generation;
  for (Fiber& fiber : block.fibers) {
    fiber.state = State::kReady;
  }
  return true;
}

// What the lanes that `mask` names brought is there: each gets what it asked for.
void deliver(Fiber* lanes, uint32_t mask) {
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    votes |= (mask >> lane & 1u) != 0 && lanes[lane].brought != 0 ? 1u << lane : 0u;
  }
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1u) != 0) {
      lanes[lane].received = lanes[lanes[lane].from].brought;
      lanes[lane].votes = votes;
      lanes[lane].state = State::kReady;
    }
  }
}

// Whether all that the mask of a waiting lane names wait with it.
bool is_complete(const Fiber* lanes, const Fiber& waiting) {
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const Fiber& other = lanes[lane];
    if ((waiting.mask >> lane & 1u) != 0 &&
        !(other.state == State::kAtWarpBarrier && other.mask == waiting.mask &&
          same_place(other, waiting))) {
      return false;
    }
  }
  return true;
}

// Lets lanes of a warp go on that wait at one barrier. Of the lanes that wait, one mask's may be
// all there where another's are not.
void release_warp(Block& block, uint32_t w) {
  Fiber* const lanes = &block.fibers[w * kWarpSize];
  uint32_t tried = 0;
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const Fiber& fiber = lanes[lane];
    if (fiber.state != State::kAtWarpBarrier || (tried >> lane & 1u) != 0) {
      continue;
    }
    tried |= fiber.mask;
    if (is_complete(lanes, fiber)) {
      ++block.warps[w].generation;
      deliver(lanes, fiber.mask);
    }
  }
}

// Why nothing can go on.
std::string stuck(const Block& block) {
  const Fiber* waiting = nullptr;
  const Fiber* other = nullptr;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == State::kEnded) {
      other = &fiber;
    } else if (waiting == nullptr) {
      waiting = &fiber;
    } else if (!same_place(fiber, *waiting) || fiber.mask != waiting->mask) {
      other = &fiber;
    }
  }
  std::string why = "thread " + std::to_string(waiting->thread_index.x) + " waits at " +
                    place(*waiting) + " for ever";
  if (other != nullptr) {
    why += ": thread " + std::to_string(other->thread_index.x) +
           (other->state == State::kEnded ? " has ended" : " waits at " + place(*other));
  }
  return why;
}

// One turn of a block: a few threads each run until they wait. Returns: whether it has more to do.
bool take_turn(Block& block, std::mt19937_64& random, size_t turns) {
  std::vector<Fiber*> ready;
  while (true) {
    ready.clear();
    for (Fiber& fiber : block.fibers) {
      if (fiber.state == State::kReady) {
        ready.push_back(&fiber);
      }
    }
    if (ready.empty()) {
      if (!block.fault.empty()) {
        return false;
      }
      if (release_block(block)) {
        continue;
      }
      const auto ended = [](const Fiber& f) { return f.state == State::kEnded; };
      if (!std::all_of(block.fibers.begin(), block.fibers.end(), ended)) {
        block.fault = stuck(block);
      }
      return false;
    }
    if (schedule.order == Order::kDescending) {
      std::reverse(ready.begin(), ready.end());
    } else if (schedule.order == Order::kRandom) {
      std::shuffle(ready.begin(), ready.end(), random);
    }
    for (Fiber* fiber : ready) {
      current = fiber;
#if defined(EMULATE_UNDER_TSAN)
      block.sanitizer = __tsan_get_current_fiber();
      __tsan_switch_to_fiber(fiber->seat.sanitizer, kNoSync);
#endif
      swapcontext(&block.scheduler, &fiber->context);
      current = nullptr;
      if (!block.fault.empty()) {
        return false;
      }
      // Warps go on as soon as they can, so that they drift apart as far as barriers let them.
      if (!block.warps.empty()) {
        release_warp(block, fiber->thread_index.x / kWarpSize);
      }
      if (turns-- == 0) {
        return true;
      }
    }
  }
}

std::unique_ptr<Block> make_block(uint32_t index, const Grid& grid, void (*body)(const void*),
                                  const void* argument, const SharedMemory& shared,
                                  std::vector<Seat>& seats) {
  auto block = std::make_unique<Block>();
  block->fibers = std::vector<Fiber>(grid.threads);
  block->warps = std::vector<Tags>(grid.threads / kWarpSize);
  block->body = body;
  block->argument = argument;
  block->shared.assign(shared.bytes, '\xff');
#if defined(EMULATE_DELAYED_STORES)
  block->shared_place = shared;
#endif
  for (uint32_t t = 0; t < grid.threads; ++t) {
    block->fibers[t].thread_index = {t};
    block->fibers[t].block_index = {index};
    block->fibers[t].grid = &grid;
    make_fiber(block->fibers[t], *block, seats);
  }
  release(block->launched, 0);
  return block;
}

void end_block(Block& block, std::vector<Seat>& seats) {
  acquire(block.ended, 0);
  for (Fiber& fiber : block.fibers) {
    seats.push_back(std::move(fiber.seat));
  }
}

#if defined(EMULATE_UNDER_TSAN)
// Not memcpy, which ThreadSanitizer would take for an access of the kernels' own.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void copy_bytes(char* to,
                                                                              const char* from,
                                                                              size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    to[i] = from[i];
  }
}
#else
void copy_bytes(char* to, const char* from, size_t bytes) { std::memcpy(to, from, bytes); }
#endif

// Beyond what the launch asked for, nothing may be written.
void check_dynamic_shared(Block& block, const Grid& grid) {
  const char* const begin = metacurv::dynamic_shared;
  const auto touched = [](char byte) { return byte != '\xff'; };
  if (block.fault.empty() &&
      std::any_of(begin + grid.dynamic_shared, begin + kMostDynamicShared, touched)) {
    block.fault = "writes beyond the dynamic shared memory of its launch";
  }
}

// Runs every workers-th block, in the schedule's order. Returns: what went wrong.
std::string run_share(uint32_t worker, const Grid& grid, void (*body)(const void*),
                      const void* argument) {
  std::mt19937_64 random(schedule.seed + 1000003 * worker);
  std::vector<uint32_t> waiting;
  if (all_blocks) {
    for (uint32_t b = worker; b < grid.blocks; b += schedule.workers) {
      waiting.push_back(b);
    }
  } else {
    std::copy_if(some_blocks.begin(), some_blocks.end(), std::back_inserter(waiting),
                 [&](uint32_t b) { return b < grid.blocks && b % schedule.workers == worker; });
  }
  // The last is taken first.
  if (schedule.order == Order::kAscending) {
    std::reverse(waiting.begin(), waiting.end());
  } else if (schedule.order == Order::kRandom) {
    std::shuffle(waiting.begin(), waiting.end(), random);
  }
  const SharedMemory shared = shared_memory();
  std::vector<Seat> seats;
  std::vector<std::unique_ptr<Block>> resident;
#if defined(EMULATE_DELAYED_STORES)
  std::vector<PendingStores> unseen;  // of blocks that have ended
#endif
  while (!waiting.empty() || !resident.empty()) {
    while (resident.size() < schedule.resident && !waiting.empty()) {
      resident.push_back(make_block(waiting.back(), grid, body, argument, shared, seats));
      waiting.pop_back();
    }
    const size_t chosen = random() % resident.size();
    Block& block = *resident[chosen];
    copy_bytes(shared.begin, block.shared.data(), shared.bytes);
    const size_t turns = resident.size() == 1 ? SIZE_MAX : 1 + random() % (2 * grid.threads);
#if defined(EMULATE_DELAYED_STORES)
    block.stores.begin_turn();
#endif
    const bool goes_on = take_turn(block, random, turns);
#if defined(EMULATE_DELAYED_STORES)
    block.stores.end_turn(random);
#endif
    if (!goes_on) {
      check_dynamic_shared(block, grid);
    }
    copy_bytes(block.shared.data(), shared.begin, shared.bytes);
    if (!block.fault.empty()) {
      return block.fault;
    }
    if (!goes_on) {
      end_block(block, seats);
#if defined(EMULATE_DELAYED_STORES)
      unseen.push_back(std::move(block.stores));
#endif
      resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(chosen));
    }
  }
#if defined(EMULATE_DELAYED_STORES)
  for (PendingStores& stores : unseen) {
    stores.publish_all();
  }
#endif
#if defined(EMULATE_UNDER_TSAN)
  for (Seat& seat : seats) {
    __tsan_destroy_fiber(seat.sanitizer);
  }
#endif
  return "";
}

void wait_at(State state, uint32_t mask, const char* file, int line) {
  Fiber* fiber = running();
  fiber->state = state;
  fiber->mask = mask;
  fiber->file = file;
  fiber->line = line;
  yield();
}

}  // namespace

void block_barrier(const char* file, int line) {
  Tags& tags = current->block->all;
  const uint32_t generation = tags.generation + 1;
  release(tags, generation);
  wait_at(State::kAtBlockBarrier, 0, file, line);
  acquire(tags, generation);
}

void warp_barrier(uint32_t mask, const char* file, int line) {
  const uint32_t lane = current->thread_index.x % kWarpSize;
  if ((mask >> lane & 1u) == 0) {
    fail("calls a warp's barrier at line " + std::to_string(line) + " with a mask that lacks it");
  }
  Tags& tags = current->block->warps[current->thread_index.x / kWarpSize];
  const uint32_t generation = tags.generation + 1;
  release(tags, generation);
  wait_at(State::kAtWarpBarrier, mask, file, line);
  acquire(tags, generation);
}

uint64_t exchange(uint32_t mask, uint64_t bits, uint32_t lane, const char* file, int line) {
  if ((mask >> lane & 1u) == 0) {
    fail("a shuffle at line " + std::to_string(line) + " reads from a lane outside its mask");
  }
  Fiber* fiber = running();
  fiber->brought = bits;
  fiber->from = lane;
  warp_barrier(mask, file, line);
  return fiber->received;
}

uint32_t ballot(uint32_t mask, bool value, const char* file, int line) {
  Fiber* fiber = running();
  fiber->brought = value;
  warp_barrier(mask, file, line);
  return fiber->votes;
}

void fence() {
#if defined(EMULATE_DELAYED_STORES)
  current->block->stores.publish(current);
#endif
#if defined(EMULATE_UNDER_TSAN)
  __tsan_release(&fences);
  __tsan_acquire(&fences);
#endif
}

bool run_grid(Grid grid, void (*body)(const void*), const void* argument) {
  launches.push_back(grid);
  const bool fits = grid.blocks >= 1 && grid.blocks <= INT32_MAX && grid.threads >= 1 &&
                    grid.threads <= 1024 && grid.dynamic_shared <= kMostDynamicShared;
  if (!fits) {
    last_fault = "a grid of that size cannot be launched";
    return false;
  }
  // Kernels of one thread have no warp to complete.
  if (grid.threads != 1 && grid.threads % kWarpSize != 0) {
    last_fault = "blocks are to be of whole warps";
    return false;
  }
  std::vector<std::string> faults(schedule.workers);
  if (schedule.workers == 1) {
    faults[0] = run_share(0, grid, body, argument);
  } else {
    std::vector<std::thread> workers;
    for (uint32_t w = 0; w < schedule.workers; ++w) {
      workers.emplace_back([&, w] { faults[w] = run_share(w, grid, body, argument); });
    }
    for (std::thread& worker : workers) {
      worker.join();
    }
  }
  for (const std::string& fault : faults) {
    if (!fault.empty()) {
      last_fault = fault;
      return false;
    }
  }
  return true;
}

const char* fault() { return last_fault.c_str(); }

}  // namespace emulation

// For Python.
extern "C" {

#if defined(EMULATE_DELAYED_STORES)
// To global memory only: what a block stores on stacks and in shared memory is its own.
void emulation_announce(void* address, size_t bytes) {
  using emulation::current;
  if (current == nullptr) {
    return;  // launch code
  }
  const emulation::SharedMemory& shared = current->block->shared_place;
  const auto* const at = static_cast<const char*>(address);
  const auto* const stack = static_cast<emulation::Fiber*>(current)->seat.stack.get();
  const bool is_shared = at >= shared.begin && at < shared.begin + shared.bytes;
  if (!is_shared && !(at >= stack && at < stack + emulation::kStackBytes)) {
    current->block->stores.announce(current, address, bytes);
  }
}
#endif

__attribute__((visibility("default"))) const char* emulation_fault() { return emulation::fault(); }

__attribute__((visibility("default"))) void emulation_schedule(int order, uint64_t seed,
                                                               uint32_t resident,
                                                               uint32_t workers) {
  emulation::schedule = {static_cast<emulation::Order>(order), seed, resident, workers};
}

// No array: all blocks.
__attribute__((visibility("default"))) void emulation_blocks(const uint32_t* blocks, size_t n) {
  emulation::all_blocks = blocks == nullptr;
  emulation::some_blocks.assign(blocks, blocks + n);
}

// How many launches there were since the last call, and their sizes: blocks, threads, blocks ...
__attribute__((visibility("default"))) size_t emulation_launches(uint32_t* sizes, size_t room) {
  const size_t n = emulation::launches.size();
  for (size_t i = 0; i < n && 2 * i + 1 < room; ++i) {
    sizes[2 * i] = emulation::launches[i].blocks;
    sizes[2 * i + 1] = emulation::launches[i].threads;
  }
  emulation::launches.clear();
  return n;
}

// libtorch_cuda's, which no CPU build of torch has.
__attribute__((visibility("default"))) int aoti_torch_get_current_cuda_stream(int32_t,
                                                                              void** stream) {
  *stream = nullptr;
  return 0;
}
}

namespace metacurv {

float half_to_float(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof(half));
  return static_cast<float>(half);
}

}  // namespace metacurv
