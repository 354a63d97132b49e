// `Buffer`: memory for tensors: aligned to cache lines, in large pages where the system has them.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

namespace ssmquant {

// Gives the whole pages between two addresses back to the system: those of a file are read again at the next look, others
// are zeros then.
void give_back(const uint8_t* first, const uint8_t* last);

class Buffer {
 public:
  Buffer() = default;
  // Memory of unknown content. Throws std::bad_alloc.
  explicit Buffer(int64_t bytes);
  // The same, behind the one that was made so before it. For what lives as long as its neighbours and is read in order, as the
  // weights of a model: alone, one of a few MB would fill hardly a large page, and reading is a third slower in small ones.
  static Buffer beside_others(int64_t bytes);

  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void swap(Buffer& other) {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  Buffer(std::shared_ptr<uint8_t> memory, int64_t bytes) : memory_(std::move(memory)), data_(memory_.get()), size_(bytes) {}

  std::shared_ptr<uint8_t> memory_;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace ssmquant
