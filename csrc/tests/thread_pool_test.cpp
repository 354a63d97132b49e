// The thread pool: every task once, from several callers, in a child of fork.
#include "runtime/thread_pool.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "tests/test.hpp"

namespace ssmquant::tests {
namespace {

// Runs jobs of many sizes and checks that every task was run once.
void run_jobs(ThreadPool& pool, int jobs) {
  for (int job = 0; job < jobs; ++job) {
    const int tasks = job % 37;
    std::vector<int> runs(static_cast<size_t>(tasks), 0);  // plain numbers: a race would show under a sanitizer
    pool.run(tasks, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
    for (int task = 0; task < tasks; ++task) CHECK(runs[static_cast<size_t>(task)] == 1, "job %d, task %d", job, task);
  }
}

// Whether a job ends of which one thread holds a task until all others are done, those of its own share among them.
bool others_go_on(ThreadPool& pool, int64_t tasks, int64_t held) {
  std::atomic<int64_t> done{0};
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  pool.run(tasks, [&](int64_t task) {
    while (task == held && done < tasks - 1 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    ++done;
  });
  return std::chrono::steady_clock::now() < limit;
}

}  // namespace

TEST(every_task_runs_once) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads, "%d threads", threads);
    run_jobs(pool, 2000);
  }
}

TEST(a_pool_wakes_from_sleep) {
  ThreadPool pool(3);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // longer than a worker spins
    run_jobs(pool, 40);
  }
}

TEST(callers_take_turns) {
  ThreadPool pool(2);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([&] { run_jobs(pool, 500); });
  for (std::thread& caller : callers) caller.join();
}

TEST(a_share_is_finished_by_others) {
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    for (int64_t held = 0; held < 12; held += 5) {
      CHECK(others_go_on(pool, 12, held), "%d threads wait for task %ld", threads, static_cast<long>(held));
    }
  }
}

TEST(what_is_expected_changes_nothing) {
  ThreadPool pool(3);
  for (int i = 0; i < 50; ++i) {
    std::vector<uint8_t> memory(static_cast<size_t>(1000 * i + 1));
    pool.expect({memory.data(), static_cast<int64_t>(memory.size()) / 7, i % 9});
    run_jobs(pool, 20);
    memory = {};  // gone while threads may still fetch it
    run_jobs(pool, 20);
    if (i % 2) pool.expect({});
  }
}

TEST(pools_come_and_go) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 3) run_jobs(pool, 3);
  }
}

// Sanitizers cannot start threads in a child of a process that has threads.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TEST(a_fork_has_threads_of_its_own) {
  auto pool = std::make_unique<ThreadPool>(3);
  run_jobs(*pool, 10);
  const pid_t child = fork();
  if (child == 0) {
    run_jobs(*pool, 100);
    const bool threads = others_go_on(*pool, 12, 0);  // a child that had none would do all tasks itself, one after another
    pool.reset();
    _exit(threads ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with %d", status);
  run_jobs(*pool, 100);
}
#endif

}  // namespace ssmquant::tests
