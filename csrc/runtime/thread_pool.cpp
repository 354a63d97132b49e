#include "runtime/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace ssmquant {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostThreads = 1024;
// Longer than what lies between two jobs of a token, and than most callers take between two tokens.
constexpr std::chrono::microseconds kWorkerSpin(200);
// Longer than a task takes on a thread that runs.
constexpr std::chrono::microseconds kCallerSpin(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until `done` or until the time is over, with calls of `idle` in between; returns done().
template <class Done, class Idle>
bool spin(std::chrono::microseconds time, const Done& done, const Idle& idle) {
  const auto start = Clock::now();
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      idle();
    }
  } while (Clock::now() - start < time);
  return done();
}

// Half of a processor core's own cache: what is fetched too early must not drive out what is in use.
int64_t fetchable_bytes() {
  constexpr int64_t usual = int64_t{1} << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return (size > 0 ? size : usual) / 2;
#else
  return usual / 2;
#endif
}

// What one thread is to do, in cache lines that the others do not touch for long.
struct alignas(128) Share {
  // The first task that nobody has claimed (lower half), and the one behind the last (upper half).
  std::atomic<uint64_t> claims{0};
  // What to fetch while there is no task: from `next` to `end`.
  std::atomic<const uint8_t*> next{nullptr}, end{nullptr};

  // Claims a task; false if none is left.
  bool claim(uint32_t& task) {
    uint64_t seen = claims.load(std::memory_order_acquire);
    do {
      task = static_cast<uint32_t>(seen);
      if (task >= static_cast<uint32_t>(seen >> 32)) return false;
    } while (!claims.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel));
    return true;
  }

  // Fetches a little of what the next job reads; pauses if there is nothing to fetch.
  void fetch_or_pause() {
    constexpr int64_t kLine = 64, kAtOnce = 8 * kLine;
    const uint8_t* from = next.load(std::memory_order_relaxed);
    if (from >= end.load(std::memory_order_relaxed)) return pause();
    for (int64_t at = 0; at < kAtOnce; at += kLine) __builtin_prefetch(from + at, 0, 2);
    // Fails, as it should, if something else is expected since.
    next.compare_exchange_strong(from, from + kAtOnce, std::memory_order_relaxed);
  }
};

// How often this process is a fork of a fork …: a pool made before the last one has lost its threads.
std::atomic<uint64_t> forks{0};

void note_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

uint64_t count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, note_fork);
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

int cores() {
  const int logical = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0 && CPU_COUNT(&allowed) > 0) {
    std::set<std::string> found;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
      std::string siblings;
      if (!std::getline(file, siblings)) return CPU_COUNT(&allowed);
      found.insert(siblings);
    }
    return static_cast<int>(found.size());
  }
#endif
  return logical > 0 ? logical : 1;
}

}  // namespace

int default_threads() {
  const char* wanted = std::getenv("SSMQUANT_THREADS");
  if (!wanted || !*wanted) return cores();
  char* end = nullptr;
  const long threads = std::strtol(wanted, &end, 10);
  if (*end || threads < 1 || threads > kMostThreads) {
    throw std::invalid_argument("SSMQUANT_THREADS=" + std::string(wanted) + " is no number of threads; use 1 to " +
                                std::to_string(kMostThreads) + ", or leave it away for one a processor core");
  }
  return static_cast<int>(threads);
}

struct ThreadPool::Crew {
  explicit Crew(int threads) : forks(count_forks()), shares(static_cast<size_t>(threads)) {
    for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { serve(static_cast<size_t>(i)); });
  }

  ~Crew() {
    stopping = true;
    {
      std::lock_guard<std::mutex> lock(sleep);
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  // The first of `count` things that belong to a thread.
  int64_t first(int64_t count, size_t thread) const {
    return count * static_cast<int64_t>(thread) / static_cast<int64_t>(shares.size());
  }

  void expect(const Pieces& pieces) {
    static const int64_t most = fetchable_bytes();
    for (size_t i = 0; i < shares.size(); ++i) {
      const int64_t from = first(pieces.count, i), bytes = (first(pieces.count, i + 1) - from) * pieces.bytes;
      const uint8_t* start = pieces.data + from * pieces.bytes;
      shares[i].end.store(start + (bytes < most ? bytes : most), std::memory_order_relaxed);
      shares[i].next.store(start, std::memory_order_relaxed);
    }
  }

  void run(int64_t tasks, Call body_call, const void* job_body) {
    std::lock_guard<std::mutex> lock(job);
    if (workers.empty() || tasks == 1) {
      for (int64_t task = 0; task < tasks; ++task) body_call(job_body, task);
      return;
    }
    call = body_call;
    body = job_body;
    unfinished.store(tasks, std::memory_order_relaxed);
    for (size_t i = 0; i < shares.size(); ++i) {
      const uint64_t from = static_cast<uint64_t>(first(tasks, i)), end = static_cast<uint64_t>(first(tasks, i + 1));
      shares[i].claims.store(end << 32 | from, std::memory_order_release);
    }
    jobs.fetch_add(1);
    if (sleepers.load() > 0) {
      {
        std::lock_guard<std::mutex> sleeping(sleep);
      }
      wake.notify_all();
    }
    work(0);
    const auto finished = [this] { return unfinished.load(std::memory_order_acquire) <= 0; };
    if (spin(kCallerSpin, finished, [this] { shares[0].fetch_or_pause(); })) return;
    std::unique_lock<std::mutex> sleeping(sleep);
    caller_sleeps.store(true);
    done.wait(sleeping, [this] { return unfinished.load() <= 0; });
    caller_sleeps.store(false);
  }

  // Runs the tasks of a thread's share, then those that are left of the others'.
  void work(size_t thread) {
    for (size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(thread + i) % shares.size()];
      for (uint32_t task; share.claim(task);) {
        // A claimed task keeps its job unfinished, so call and body are this job's, whichever job the claim was read from.
        call(body, task);
        if (unfinished.fetch_sub(1) == 1 && caller_sleeps.load()) {
          {
            std::lock_guard<std::mutex> sleeping(sleep);
          }
          done.notify_one();
        }
      }
    }
  }

  // Life of a worker.
  void serve(size_t thread) {
    uint64_t seen = 0;
    const auto called = [&] { return jobs.load() != seen || stopping.load(std::memory_order_relaxed); };
    while (!stopping.load(std::memory_order_relaxed)) {
      seen = jobs.load();
      work(thread);
      if (spin(kWorkerSpin, called, [&] { shares[thread].fetch_or_pause(); })) continue;
      std::unique_lock<std::mutex> lock(sleep);
      sleepers.fetch_add(1);
      wake.wait(lock, called);
      sleepers.fetch_sub(1);
    }
  }

  const uint64_t forks;
  std::mutex job;  // held for the time of a job
  std::vector<Share> shares;
  alignas(64) std::atomic<int64_t> unfinished{0};
  Call call = nullptr;
  const void* body = nullptr;
  alignas(64) std::atomic<uint64_t> jobs{0};  // so far
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stopping{false};
  std::mutex sleep;
  std::condition_variable wake, done;
  std::vector<std::thread> workers;  // last: they use all of the above
};

ThreadPool::ThreadPool(int threads) : threads_(threads), crew_(new Crew(threads)) {}

ThreadPool::~ThreadPool() {
  Crew* crew = crew_.load();
  if (crew->forks == count_forks()) delete crew;  // else its threads are the parent's: there is nothing to join
}

// The crew of this process. A child of fork has none of its parent's threads, and perhaps a lock that one of them held: it
// leaves the old crew as it is and takes a new one.
ThreadPool::Crew& ThreadPool::crew() {
  Crew* crew = crew_.load(std::memory_order_acquire);
  if (crew->forks == count_forks()) return *crew;
  Crew* fresh = new Crew(threads_);
  if (crew_.compare_exchange_strong(crew, fresh)) return *fresh;
  delete fresh;  // another thread was first
  return *crew;
}

void ThreadPool::expect(const Pieces& next) { crew().expect(next); }

void ThreadPool::execute(int64_t tasks, Call call, const void* body) {
  if (tasks > 0) crew().run(tasks, call, body);
}

}  // namespace ssmquant
