#include "python/bindings.hpp"

namespace ssmquant {

ThreadPool& shared_pool() {
  // Never destroyed: at the end of the process another thread may still be in an engine.
  static ThreadPool* const pool = new ThreadPool(default_threads());
  return *pool;
}

}  // namespace ssmquant
