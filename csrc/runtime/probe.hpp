// What this machine can do with so many threads: how fast it reads memory, and how many integer operations it makes.
#pragma once

#include <cstdint>

#include "runtime/thread_pool.hpp"

namespace ssmquant {

// Bytes a second at which the pool's threads read a buffer together: the fastest pass of the fastest of several ways to read,
// of as many passes as fit into `seconds`.
double read_bandwidth(ThreadPool& pool, const uint8_t* buffer, int64_t bytes, double seconds);

// Int8 operations a second (a multiplication and an addition are two) of all the pool's threads, in registers: the best of
// the passes that fit into `seconds`.
double int8_peak(ThreadPool& pool, double seconds);

}  // namespace ssmquant
