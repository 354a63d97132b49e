#include "kernels/probe.hpp"

#include <cstring>

#include "kernels/table.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace ssmquant::SSMQUANT_ISA {
namespace {

// One cache line; the compiler splits it into what registers hold.
typedef uint64_t Line __attribute__((vector_size(64), may_alias, aligned(1)));
constexpr int64_t kLine = sizeof(Line);

inline const Line& line(const uint8_t* at) { return *reinterpret_cast<const Line*>(at); }

uint64_t read(const uint8_t* from, int64_t bytes, int64_t ahead) {
  const int64_t quarter = bytes / (4 * kLine) * kLine;
  Line a = {}, b = {}, c = {}, d = {};
  if (ahead) {
    for (int64_t at = 0; at < 4 * quarter; at += 4 * kLine) {
      for (int i = 0; i < 4; ++i) __builtin_prefetch(from + at + ahead + i * kLine, 0, 3);
      a |= line(from + at);
      b |= line(from + at + kLine);
      c |= line(from + at + 2 * kLine);
      d |= line(from + at + 3 * kLine);
    }
  } else {
    for (int64_t at = 0; at < quarter; at += kLine) {
      a |= line(from + at);
      b |= line(from + at + quarter);
      c |= line(from + at + 2 * quarter);
      d |= line(from + at + 3 * quarter);
    }
  }
  a |= b | c | d;
  uint64_t seen = 0;
  for (int i = 0; i < 8; ++i) seen |= a[i];
  for (int64_t at = 4 * quarter; at < bytes; ++at) seen |= from[at];
  return seen;
}

// Twelve sums hide the latency of the products on every processor that is known. They are named one by one: gcc keeps an
// array of them in memory.
#define SSMQUANT_EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
constexpr int64_t kSums = 12;

#if defined(__AVX512VNNI__)
using Sum = __m512i;
inline Sum constant(int8_t value) { return _mm512_set1_epi8(value); }
inline Sum zero() { return _mm512_setzero_si512(); }
inline Sum multiply_add(Sum sum, Sum a, Sum b) { return _mm512_dpbusd_epi32(sum, a, b); }
#define SSMQUANT_REGISTER "v"
#elif defined(__AVXVNNI__)
using Sum = __m256i;
inline Sum constant(int8_t value) { return _mm256_set1_epi8(value); }
inline Sum zero() { return _mm256_setzero_si256(); }
inline Sum multiply_add(Sum sum, Sum a, Sum b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#define SSMQUANT_REGISTER "x"
#elif defined(__AVX2__)
using Sum = __m256i;
inline Sum constant(int8_t value) { return _mm256_set1_epi8(value); }
inline Sum zero() { return _mm256_setzero_si256(); }
inline Sum multiply_add(Sum sum, Sum a, Sum b) {
  const __m256i pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define SSMQUANT_REGISTER "x"
#elif defined(__ARM_FEATURE_DOTPROD)
using Sum = int32x4_t;
inline Sum constant(int8_t value) { return vreinterpretq_s32_s8(vdupq_n_s8(value)); }
inline Sum zero() { return vdupq_n_s32(0); }
inline Sum multiply_add(Sum sum, Sum a, Sum b) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#define SSMQUANT_REGISTER "w"
#else
// No vectors to be named: a small vector of the compiler's, widened by hand as portable kernels do.
typedef int32_t Sum __attribute__((vector_size(16)));
inline Sum constant(int8_t value) {
  Sum all;
  memset(&all, value, sizeof(all));
  return all;
}
inline Sum zero() { return Sum{}; }
inline Sum multiply_add(Sum sum, Sum a, Sum b) {
  for (int byte = 0; byte < 4; ++byte) {
    sum += ((a << (24 - 8 * byte)) >> 24) * ((b << (24 - 8 * byte)) >> 24);
  }
  return sum;
}
#if defined(__aarch64__)
#define SSMQUANT_REGISTER "w"
#elif defined(__x86_64__)
#define SSMQUANT_REGISTER "x"
#else
#define SSMQUANT_REGISTER "m"
#endif
#endif

int64_t multiply(int64_t rounds, int32_t* result) {
  Sum a = constant(3), b = constant(5);
#define SSMQUANT_START(i) Sum sum##i = zero();
  // The operand may be another one each time, for all that the compiler knows: it must multiply again.
#define SSMQUANT_STEP(i)                         \
  __asm__ volatile("" : "+" SSMQUANT_REGISTER(a)); \
  sum##i = multiply_add(sum##i, a, b);
  SSMQUANT_EACH(SSMQUANT_START)
  for (int64_t round = 0; round < rounds; ++round) {
    SSMQUANT_EACH(SSMQUANT_STEP)
  }
  int32_t lanes[sizeof(Sum) / sizeof(int32_t)];
  *result = 0;
#define SSMQUANT_ADD(i)                  \
  memcpy(lanes, &sum##i, sizeof(sum##i)); \
  for (const int32_t lane : lanes) *result += lane;
  SSMQUANT_EACH(SSMQUANT_ADD)
  return 2 * rounds * kSums * static_cast<int64_t>(sizeof(Sum));
}

}  // namespace

const ProbeKernels probe = {&read, &multiply};

}  // namespace ssmquant::SSMQUANT_ISA
