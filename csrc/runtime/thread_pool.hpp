// `ThreadPool`: runs numbered tasks on a fixed number of threads, the caller's among them.
//
// Tasks are claimed one by one, so a thread that the system has put aside holds up only the task that it is in. Idle threads
// spin for some microseconds, because the jobs of one token follow each other closely, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace ssmquant {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task) for every task in [0, tasks), in any order, and returns when all are done. Bodies must not throw and must
  // not call run. Jobs of several threads run one after another.
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    execute(tasks, [](const void* b, int64_t task) { (*static_cast<const Body*>(b))(task); }, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t task);

  void execute(int64_t tasks, Call call, const void* body);
  bool work();   // runs one task; false when none is left
  void serve();  // life of a worker

  std::vector<std::thread> workers_;
  std::mutex job_;  // held for the time of a job
  // Tasks of the job (upper half) and the next one to claim (lower half).
  alignas(64) std::atomic<uint64_t> claims_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};
  Call call_ = nullptr;
  const void* body_ = nullptr;
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex sleep_;
  std::condition_variable wake_;
};

}  // namespace ssmquant
