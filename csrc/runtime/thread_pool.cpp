#include "runtime/thread_pool.hpp"

#include <chrono>

namespace ssmquant {

namespace {

constexpr std::chrono::microseconds kSpin(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

bool has_task(uint64_t claims) { return static_cast<uint32_t>(claims) < static_cast<uint32_t>(claims >> 32); }

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  {
    std::lock_guard<std::mutex> lock(sleep_);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::execute(int64_t tasks, Call call, const void* body) {
  if (tasks <= 0) return;
  std::lock_guard<std::mutex> lock(job_);
  if (workers_.empty() || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) call(body, task);
    return;
  }
  call_ = call;
  body_ = body;
  unfinished_.store(tasks, std::memory_order_relaxed);
  claims_.store(static_cast<uint64_t>(tasks) << 32);
  if (sleepers_.load() > 0) {
    {
      std::lock_guard<std::mutex> sleeping(sleep_);
    }
    wake_.notify_all();
  }
  while (work()) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < 1000) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

bool ThreadPool::work() {
  uint64_t seen = claims_.load(std::memory_order_acquire);
  do {
    if (!has_task(seen)) return false;
  } while (!claims_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel));
  // A claimed task keeps its job unfinished, so call_ and body_ are this job's, whichever job `seen` was read from.
  call_(body_, static_cast<uint32_t>(seen));
  unfinished_.fetch_sub(1, std::memory_order_release);
  return true;
}

void ThreadPool::serve() {
  while (!stopping_.load(std::memory_order_relaxed)) {
    const auto start = std::chrono::steady_clock::now();
    while (work()) {
    }
    while (!has_task(claims_.load(std::memory_order_relaxed)) && std::chrono::steady_clock::now() - start < kSpin) {
      for (int i = 0; i < 16; ++i) pause();
    }
    if (has_task(claims_.load(std::memory_order_relaxed))) continue;
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [this] { return stopping_.load() || has_task(claims_.load()); });
    sleepers_.fetch_sub(1);
  }
}

}  // namespace ssmquant
