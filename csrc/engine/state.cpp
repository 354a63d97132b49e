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
    if (layer.interval != interval || layer.rounds_later != layers.front().rounds_later) return 0;
  }
  return interval > 1 ? interval : 0;
}

bool StateLayout::due(int64_t tokens) const {
  for (const LayerLayout& layer : layers) {
    if (layer.rounds_later && tokens % layer.interval == 0) return true;
  }
  return false;
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

std::shared_ptr<Epoch> StateFactory::epoch(int64_t tokens) const {
  return {new Epoch{epochs_->take(), {interval_ ? tokens % interval_ : 0}}, [pool = epochs_](Epoch* epoch) {
            pool->give_back(std::move(epoch->data));
            delete epoch;
          }};
}

SequenceState StateFactory::make(int64_t tokens) const { return in(epoch(tokens), tokens); }

SequenceState StateFactory::in(std::shared_ptr<Epoch> epoch, int64_t tokens) const {
  std::shared_ptr<Moment> moment(new Moment, [pool = windows_](Moment* gone) {
    pool->give_back(std::move(gone->window));
    if (gone->epoch) gone->epoch->moments.fetch_sub(1);
    delete gone;
  });
  moment->window = windows_->take();
  epoch->moments.fetch_add(1);
  moment->epoch = std::move(epoch);
  return {std::move(moment), tokens};
}

SequenceState StateFactory::start() const {
  SequenceState state = make(0);
  for (const LayerLayout& layer : layout_.layers) {
    std::memset(state.moment->epoch->data.data() + layer.state.offset, 0, static_cast<size_t>(layer.state.parts * layer.state.bytes));
  }
  std::memset(state.moment->window.data(), 0, static_cast<size_t>(layout_.window_bytes));
  return state;
}

void StateFactory::advance(SequenceState& state, int64_t tokens) const {
  state.tokens += tokens;
  state.moment->epoch->claimed = interval_ ? state.tokens % interval_ : 0;
  state.moment->due = tokens == 1 && layout_.due(state.tokens);  // one alone is a step
}

Successor StateFactory::successor(const SequenceState& before) const {
  const int64_t tokens = before.tokens + 1;
  const std::shared_ptr<Epoch>& epoch = before.moment->epoch;
  int64_t place = interval_ ? before.tokens % interval_ : 0;
  const bool room = interval_ && epoch->claimed.compare_exchange_strong(place, place + 1);
  const bool shared = room && (tokens % interval_ || rounds_later());
  SequenceState after = shared ? in(epoch, tokens) : make(tokens);
  after.moment->due = layout_.due(tokens);
  std::shared_ptr<Epoch> pending = room ? epoch : after.moment->epoch;
  return {std::move(after), std::move(pending)};
}

std::shared_ptr<Epoch> StateFactory::rounded(const Moment& moment) const {
  return moment.epoch->moments.load() == 1 ? moment.epoch : epoch(0);
}

void StateFactory::settle(Moment& moment, std::shared_ptr<Epoch> rounded) const {
  rounded->moments.fetch_add(1);
  moment.epoch->moments.fetch_sub(1);
  moment.epoch = std::move(rounded);
  moment.epoch->claimed = 0;
  moment.due = false;
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
