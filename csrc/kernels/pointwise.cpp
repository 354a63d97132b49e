#include "kernels/pointwise.hpp"

#include "kernels/table.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

void quantize(const float* x, int64_t rows, int64_t channels, Scale reciprocal, int8_t* codes) {
  const F32 shared = F32::broadcast(reciprocal.values[0]);
  for (int64_t r = 0; r < rows; ++r, x += channels, codes += channels) {
    int64_t c = 0;
    for (; c + F32::width <= channels; c += F32::width) {
      const F32 scale = reciprocal.step ? F32::load(reciprocal.values + c) : shared;
      (F32::load(x + c) * scale).store_codes(codes + c);
    }
    if (const int n = static_cast<int>(channels - c)) {
      const F32 scale = reciprocal.step ? F32::load_first(reciprocal.values + c, n) : shared;
      (F32::load_first(x + c, n) * scale).store_first_codes(codes + c, n);
    }
  }
}

}  // namespace

const PointwiseKernels pointwise = {&quantize};

}  // namespace ssmquant::SSMQUANT_ISA
