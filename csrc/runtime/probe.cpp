#include "runtime/probe.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>

#include "kernels/kernels.hpp"

namespace ssmquant {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The largest amount a second of the passes that fit into `seconds`, at least one. A pass returns its amount.
template <class Pass>
double fastest(double seconds, const Pass& pass) {
  const Clock::time_point begin = Clock::now();
  double best = 0.0;
  do {
    const Clock::time_point start = Clock::now();
    const double amount = pass();
    best = std::max(best, amount / since(start));
  } while (since(begin) < seconds);
  return best;
}

}  // namespace

double read_bandwidth(ThreadPool& pool, const uint8_t* buffer, int64_t bytes, double seconds) {
  constexpr int64_t block = 1 << 20;
  constexpr int64_t distances[] = {0, 2048, 4096, 8192};
  std::atomic<uint64_t> seen{0};  // or else nothing would have to be read
  double best = 0.0;
  for (const int64_t ahead : distances) {
    best = std::max(best, fastest(seconds / std::size(distances), [&] {
      pool.run((bytes + block - 1) / block, [&](int64_t task) {
        const int64_t start = task * block;
        const uint64_t part = kernels().probe.read(buffer + start, std::min(block, bytes - start), ahead);
        seen.fetch_or(part, std::memory_order_relaxed);
      });
      return static_cast<double>(bytes);
    }));
  }
  return best;
}

double int8_peak(ThreadPool& pool, double seconds) {
  constexpr int64_t rounds = 100000;  // a millisecond or so
  std::atomic<int64_t> operations{0};
  std::atomic<int32_t> results{0};
  return fastest(seconds, [&] {
    operations.store(0, std::memory_order_relaxed);
    pool.run(pool.size(), [&](int64_t) {
      int32_t result = 0;
      operations.fetch_add(kernels().probe.multiply(rounds, &result), std::memory_order_relaxed);
      results.fetch_add(result, std::memory_order_relaxed);
    });
    return static_cast<double>(operations.load(std::memory_order_relaxed));
  });
}

}  // namespace ssmquant
