#include "engine/state.hpp"

#include <cstring>

namespace ssmquant {

namespace {

constexpr int64_t kAlignment = 64;
constexpr size_t kKept = 4;  // buffers that wait for their next use: a step needs one more than there are sequences

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Array StateLayout::in_epoch(int64_t parts, int64_t bytes) {
  const Array array{epoch_bytes, parts, bytes};
  epoch_bytes += aligned(parts * bytes);
  return array;
}

int64_t StateLayout::in_window(int64_t bytes) {
  const int64_t offset = window_bytes;
  window_bytes += aligned(bytes);
  return offset;
}

int64_t StateLayout::common_interval() const {
  const int64_t interval = layers.empty() ? 0 : layers.front().interval;
  for (const LayerLayout& layer : layers) {
    if (layer.interval != interval) return 0;
  }
  return interval > 1 ? interval : 0;
}

// Buffers of one size. Kept alive by every buffer that it gave out, so a state may outlive its model.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  explicit BufferPool(int64_t bytes) : bytes_(bytes) {}

  Buffer take() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        Buffer buffer = std::move(free_.back());
        free_.pop_back();
        return buffer;
      }
    }
    return Buffer(bytes_);
  }

  void give_back(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() < kKept) free_.push_back(std::move(buffer));
  }

 private:
  const int64_t bytes_;
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

StateFactory::StateFactory(const StateLayout& layout)
    : layout_(layout),
      interval_(layout.common_interval()),
      epochs_(std::make_shared<BufferPool>(layout.epoch_bytes)),
      windows_(std::make_shared<BufferPool>(layout.window_bytes)) {}

SequenceState StateFactory::make(int64_t tokens) const {
  return in(std::shared_ptr<Epoch>(new Epoch{epochs_->take(), {interval_ ? tokens % interval_ : 0}},
                                   [pool = epochs_](Epoch* epoch) {
                                     pool->give_back(std::move(epoch->data));
                                     delete epoch;
                                   }),
            tokens);
}

SequenceState StateFactory::in(std::shared_ptr<Epoch> epoch, int64_t tokens) const {
  std::shared_ptr<Buffer> window(new Buffer(windows_->take()), [pool = windows_](Buffer* buffer) {
    pool->give_back(std::move(*buffer));
    delete buffer;
  });
  return {std::move(epoch), std::move(window), tokens};
}

SequenceState StateFactory::start() const {
  SequenceState state = make(0);
  for (const LayerLayout& layer : layout_.layers) {
    std::memset(state.epoch->data.data() + layer.state.offset, 0, static_cast<size_t>(layer.state.parts * layer.state.bytes));
  }
  std::memset(state.window->data(), 0, static_cast<size_t>(layout_.window_bytes));
  return state;
}

void StateFactory::advance(SequenceState& state, int64_t tokens) const {
  state.tokens += tokens;
  state.epoch->claimed = interval_ ? state.tokens % interval_ : 0;
}

Successor StateFactory::successor(const SequenceState& before) const {
  const int64_t tokens = before.tokens + 1;
  int64_t place = interval_ ? before.tokens % interval_ : 0;
  const bool room = interval_ && before.epoch->claimed.compare_exchange_strong(place, place + 1);
  if (room && tokens % interval_) return {in(before.epoch, tokens), before.epoch};
  SequenceState after = make(tokens);
  std::shared_ptr<Epoch> pending = room ? before.epoch : after.epoch;
  return {std::move(after), std::move(pending)};
}

int64_t StateFactory::bytes(int64_t tokens) const {
  int64_t sum = layout_.window_bytes;
  for (const LayerLayout& layer : layout_.layers) {
    sum += layer.state.parts * layer.state.bytes;
    if (!layer.interval) continue;
    for (const Array& array : layer.pending) sum += array.parts * array.bytes / layer.interval * (tokens % layer.interval);
  }
  return sum;
}

}  // namespace ssmquant
