// Memory for tensors.
#include "runtime/buffer.hpp"

#include <cstdint>
#include <utility>
#include <vector>

#include "tests/test.hpp"

namespace ssmquant {
namespace {

bool holds(const Buffer& buffer, uint8_t value) {
  for (int64_t i = 0; i < buffer.size(); ++i) {
    if (buffer.data()[i] != value) return false;
  }
  return true;
}

Buffer filled(int64_t bytes, uint8_t value) {
  Buffer buffer = Buffer::beside_others(bytes);
  for (int64_t i = 0; i < bytes; ++i) buffer.data()[i] = value;
  return buffer;
}

TEST(neighbours_do_not_touch_one_another) {
  std::vector<Buffer> buffers;
  const int64_t sizes[] = {1, 63, 64, 4096, 100000, 3 << 20, 65};
  uint8_t value = 1;
  for (const int64_t size : sizes) buffers.push_back(filled(size, value++));
  for (size_t i = 0; i < buffers.size(); ++i) {
    CHECK(reinterpret_cast<uintptr_t>(buffers[i].data()) % 64 == 0, "buffer %d", static_cast<int>(i));
    CHECK(holds(buffers[i], static_cast<uint8_t>(i + 1)), "buffer %d", static_cast<int>(i));
  }
  // What is freed, and given back to the system, lies between what is not.
  for (size_t i = 0; i < buffers.size(); i += 2) buffers[i] = Buffer();
  buffers.push_back(filled(1 << 20, 99));
  for (size_t i = 1; i + 1 < buffers.size(); i += 2) {
    CHECK(holds(buffers[i], static_cast<uint8_t>(i + 1)), "buffer %d", static_cast<int>(i));
  }
  CHECK(holds(buffers.back(), 99), "the newest buffer has %d bytes", static_cast<int>(buffers.back().size()));
}

TEST(a_buffer_larger_than_what_neighbours_share) {
  const int64_t bytes = (int64_t{256} << 20) + 100;  // only its ends are touched
  Buffer large = Buffer::beside_others(bytes);
  large.data()[0] = 1;
  large.data()[bytes - 1] = 2;
  const Buffer next = filled(1000, 3);
  const Buffer moved = std::move(large);
  CHECK(moved.data()[0] == 1 && moved.data()[bytes - 1] == 2 && moved.size() == bytes && holds(next, 3), "%d bytes",
        static_cast<int>(moved.size()));
  CHECK(Buffer::beside_others(0).size() == 0, "an empty buffer");
}

}  // namespace
}  // namespace ssmquant
