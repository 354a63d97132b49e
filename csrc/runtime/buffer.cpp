#include "runtime/buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

namespace ssmquant {

namespace {

constexpr int64_t kAlignment = 64;
// From here on memory is mapped on its own and goes back to the system when it is freed.
constexpr int64_t kMapped = int64_t{1} << 20;

}  // namespace

void give_back(const uint8_t* first, const uint8_t* last) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = (reinterpret_cast<uintptr_t>(first) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(last) / page * page;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
}

Buffer::Buffer(int64_t bytes) : size_(bytes), mapped_(bytes >= kMapped) {
  if (bytes <= 0) return;
  if (mapped_) {
    void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish: without it all works, with more page walks
#endif
    data_ = static_cast<uint8_t*>(memory);
    return;
  }
  const size_t rounded = static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
  data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
  if (!data_) throw std::bad_alloc();
}

Buffer::~Buffer() {
  if (mapped_) {
    munmap(data_, static_cast<size_t>(size_));
  } else {
    std::free(data_);
  }
}

}  // namespace ssmquant
