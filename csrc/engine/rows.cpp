#include "engine/rows.hpp"

#include <algorithm>

namespace ssmquant {

void Sites::round(const Rows& rows, int64_t count, int64_t first, int64_t last) const {
  for (const Rounded& site : rounded) {
    const int64_t begin = std::max(first, site.first), end = std::min(last, site.first + site.channels);
    if (begin >= end) continue;
    kernels().pointwise.round(rows.from(0, begin).floats(), rows.stride, count, end - begin, site.scale.from(begin - site.first),
                              site.reciprocal.from(begin - site.first));
  }
}

void Sites::round(ThreadPool& pool, const Rows& rows, int64_t count) const {
  if (rounded.empty()) return;
  pool.run(count, [&](int64_t row) { round(rows.from(row), 1, 0, rows.stride); });
}

}  // namespace ssmquant
