// `ThreadPool`: runs numbered tasks on a fixed number of threads, the caller's among them.
//
// Each thread has a share of the tasks, neighbours that it takes in their order, one by one; then it helps with the others'
// shares. So it goes through memory in order, and a thread that the system has put aside holds up only the task that it is in.
// Idle threads fetch what the next job reads and spin for some microseconds, because the jobs of one token follow each other
// closely, and then sleep; so does a caller that waits for the last tasks, which leaves its processor to the thread that has
// them.
#pragma once

#include <atomic>
#include <cstdint>

namespace ssmquant {

// What a job reads: `count` neighbouring pieces of memory, one a task.
struct Pieces {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;  // of a piece
  int64_t count = 0;
};

// Threads to use where nobody says: the environment variable SSMQUANT_THREADS, or else one for each processor core that this
// process may run on (threads of one core would share its arithmetic and its caches). Throws std::invalid_argument for a
// variable that is no number from 1 to 1024.
int default_threads();

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Says what one of the next jobs will read. Until it is told otherwise, a thread that waits fetches the beginning of its share
  // into its own cache. The memory need not stay readable: fetching never fails.
  void expect(const Pieces& next);

  // Calls body(task) for every task in [0, tasks), in any order, and returns when all are done. Bodies must not throw and must
  // not call run. Jobs of several threads run one after another. Works in a child of fork too.
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    execute(tasks, [](const void* b, int64_t task) { (*static_cast<const Body*>(b))(task); }, &body);
  }

 private:
  struct Crew;  // the workers, and what they share with the caller
  using Call = void (*)(const void* body, int64_t task);

  void execute(int64_t tasks, Call call, const void* body);
  Crew& crew();

  const int threads_;
  std::atomic<Crew*> crew_;
};

}  // namespace ssmquant
