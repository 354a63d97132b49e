#include "runtime/buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <new>

namespace ssmquant {

namespace {

using Memory = std::shared_ptr<uint8_t>;

constexpr int64_t kAlignment = 64;
// From here on memory is mapped on its own and goes back to the system when it is freed.
constexpr int64_t kMapped = int64_t{1} << 20;
// Buffers beside one another share mappings of this size: a small one's share of the last large page in use, which the system
// fills whole, is the only memory that is wasted.
constexpr int64_t kShared = int64_t{256} << 20;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Null if the system refuses. The system fills it when it is touched.
Memory map(int64_t bytes) {
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish: without it all works, with more page walks
#endif
  return {static_cast<uint8_t*>(memory), [bytes](uint8_t* start) { munmap(start, static_cast<size_t>(bytes)); }};
}

// A mapping and what of it is not in use yet.
struct Shared {
  std::mutex mutex;
  Memory mapping;
  int64_t used = 0, size = 0;
};

}  // namespace

void give_back(const uint8_t* first, const uint8_t* last) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = (reinterpret_cast<uintptr_t>(first) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(last) / page * page;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
}

Buffer::Buffer(int64_t bytes) : size_(bytes) {
  if (bytes <= 0) return;
  if (bytes >= kMapped) {
    memory_ = map(bytes);
  } else {
    void* memory = std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(aligned(bytes)));
    if (memory) memory_ = {static_cast<uint8_t*>(memory), [](uint8_t* start) { std::free(start); }};
  }
  if (!memory_) throw std::bad_alloc();
  data_ = memory_.get();
}

Buffer Buffer::beside_others(int64_t bytes) {
  static Shared& shared = *new Shared;  // for as long as the process lives
  if (bytes <= 0) return Buffer(bytes);
  std::lock_guard<std::mutex> lock(shared.mutex);
  if (shared.used + bytes > shared.size) {
    const int64_t size = bytes > kShared ? bytes : kShared;
    Memory mapping = map(size);
    if (!mapping) return Buffer(bytes);  // a process may be allowed less than it would share
    shared.mapping = std::move(mapping);
    shared.used = 0;
    shared.size = size;
  }
  uint8_t* const start = shared.mapping.get() + shared.used;
  shared.used += aligned(bytes);
  // What nobody uses any more goes back at once, the mapping with the last one.
  return {Memory(start, [bytes, mapping = shared.mapping](uint8_t* first) { give_back(first, first + bytes); }), bytes};
}

}  // namespace ssmquant
