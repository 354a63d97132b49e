#include <thread>

#include "python/bindings.hpp"

namespace ssmquant {

ThreadPool& shared_pool() {
  static ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
  return pool;
}

}  // namespace ssmquant
