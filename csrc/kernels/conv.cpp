#include "kernels/conv.hpp"

#include <type_traits>

#include "kernels/table.hpp"
#include "kernels/values.hpp"
#include "simd/math.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

// Rows lie pages apart, and none is found ahead by the processor: while a tile of rows and channels is worked off, the rows
// behind it are fetched.
constexpr int64_t kTokens = 16;
constexpr int64_t kChannels = 256;

// Adds up the taps for tokens [0, tokens) and hands each sum to `finish(t, sum)`. input(t) and tap(k) load vectors.
template <class Load, class Tap, class Finish>
inline void sums(int64_t taps, int64_t tokens, const Load& input, const Tap& tap, const Finish& finish) {
  if (taps == 4) {  // of every published model: inputs stay in registers until they have met all taps
    const F32 w0 = tap(0), w1 = tap(1), w2 = tap(2), w3 = tap(3);
    F32 a = input(-3), b = input(-2), c = input(-1);
    for (int64_t t = 0; t < tokens; ++t) {
      const F32 d = input(t);
      finish(t, fma(d, w3, fma(c, w2, fma(b, w1, a * w0))));
      a = b;
      b = c;
      c = d;
    }
    return;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    F32 sum = F32::zero();
    for (int64_t k = 0; k < taps; ++k) sum = fma(input(t + k - (taps - 1)), tap(k), sum);
    finish(t, sum);
  }
}

// A vector of channels from c on, tokens [start, start + tokens).
template <class Lanes>
void convolve(const Conv& conv, const Input& x, int64_t start, int64_t tokens, int64_t c, Lanes lanes, const Output& out) {
  const F32 bias = conv.bias ? load(conv.bias + c, lanes) : F32::zero();
  if (conv.codes) {
    // Codes as floats: sums of products of codes are far below 2^24, so they are exact.
    const F32 scale = at(conv.scale, c, lanes);
    sums(
        conv.taps, tokens, [&](int64_t t) { return load(x.codes + (start + t) * x.stride + c, lanes); },
        [&](int64_t k) { return load(conv.codes + k * conv.channels + c, lanes); },
        [&](int64_t t, F32 sum) { emit(silu(sum * scale + bias), out, start + t, c, lanes); });
  } else {
    sums(
        conv.taps, tokens, [&](int64_t t) { return value(x, start + t, c, lanes); },
        [&](int64_t k) { return load(conv.floats + k * conv.channels + c, lanes); },
        [&](int64_t t, F32 sum) { emit(silu(sum + bias), out, start + t, c, lanes); });
  }
}

// Fetches channels from c on of rows [first, last), of which a vector of channels has its share: all of them lie in one line.
template <class Element>
void fetch(Element* values, int64_t stride, int64_t first, int64_t last, int64_t c, int64_t place) {
  constexpr int64_t vectors = 64 / (F32::width * sizeof(Element)) > 0 ? 64 / (F32::width * sizeof(Element)) : 1;
  constexpr bool written = !std::is_const_v<Element>;
  const int64_t part = place / F32::width % vectors, rows = last - first;
  const int64_t end = first + rows * (part + 1) / vectors;
  for (int64_t t = first + rows * part / vectors; t < end; ++t) __builtin_prefetch(values + t * stride + c, written);
}

void run(const Conv& conv, Input x, int64_t tokens, int64_t first, int64_t last, Output out) {
  for (int64_t c = first; c < last; c += kChannels) {
    const int64_t channels = last - c < kChannels ? last - c : kChannels;
    for (int64_t start = 0; start < tokens; start += kTokens) {
      const int64_t end = start + kTokens < tokens ? start + kTokens : tokens;
      const int64_t next = end + kTokens < tokens ? end + kTokens : tokens;
      each_vector(channels, [&](int64_t place, auto lanes) {
        const int64_t line = c + place / 64 * 64;
        x.codes ? fetch(x.codes, x.stride, end, next, line, place) : fetch(x.floats, x.stride, end, next, c + place, place);
        out.codes ? fetch(out.codes, out.stride, end, next, line, place) : fetch(out.floats, out.stride, end, next, c + place, place);
        convolve(conv, x, start, end - start, c + place, lanes, out);
      });
    }
  }
}

}  // namespace

const ConvKernels conv = {&run};

}  // namespace ssmquant::SSMQUANT_ISA
