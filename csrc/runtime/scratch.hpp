// Memory for the intermediate results of one thread.
#pragma once

#include <cstdint>

namespace ssmquant {

// At least `floats` floats, aligned to 64 bytes, contents unknown. They are the calling thread's and good until it calls again;
// the memory grows with the largest request and lives as long as the thread. Throws std::bad_alloc.
float* scratch(int64_t floats);

}  // namespace ssmquant
