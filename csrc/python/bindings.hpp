// What the sources of the extension share: array types, the thread pool.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>

#include "kernels/operands.hpp"
#include "runtime/thread_pool.hpp"

namespace ssmquant {

// Contiguous arrays on the CPU, as PyTorch tensors come through DLPack; nothing is copied.
using Floats = nanobind::ndarray<const float, nanobind::c_contig, nanobind::device::cpu>;
using Codes = nanobind::ndarray<const int8_t, nanobind::c_contig, nanobind::device::cpu>;
using FloatsOut = nanobind::ndarray<float, nanobind::c_contig, nanobind::device::cpu>;
using CodesOut = nanobind::ndarray<int8_t, nanobind::c_contig, nanobind::device::cpu>;

inline Scale scale_of(const Floats& values) {
  return {values.data(), values.size() > 1 ? int64_t{1} : int64_t{0}};
}

// An array whose type is seen at run time.
using Out = nanobind::ndarray<nanobind::c_contig, nanobind::device::cpu>;

// Rows to read: codes where there is a scale ([1] or [channels]), else floats; `stride` elements apart.
inline Input input_of(const Out& data, const std::optional<Floats>& scale, int64_t stride) {
  if (data.dtype() != (scale ? nanobind::dtype<int8_t>() : nanobind::dtype<float>())) {
    throw std::invalid_argument("an input is int8 where it has a scale, and float32 else");
  }
  if (scale) return {static_cast<const int8_t*>(data.data()), nullptr, scale_of(*scale), stride};
  return {nullptr, static_cast<const float*>(data.data()), {nullptr, 0}, stride};
}

// Rows to write: codes where there is a reciprocal ([1] or [channels]), else floats.
inline Output output_of(const Out& out, const std::optional<Floats>& reciprocal) {
  if (out.dtype() != (reciprocal ? nanobind::dtype<int8_t>() : nanobind::dtype<float>())) {
    throw std::invalid_argument("results are int8 where there is a scale for them, and float32 else");
  }
  const int64_t stride = static_cast<int64_t>(out.shape(out.ndim() - 1));
  if (reciprocal) return {static_cast<int8_t*>(out.data()), nullptr, scale_of(*reciprocal), stride};
  return {nullptr, static_cast<float*>(out.data()), {nullptr, 0}, stride};
}

// The pool of the ops and of every engine that names no other number of threads.
ThreadPool& shared_pool();

void bind_conv(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_pointwise(nanobind::module_& m);
void bind_probe(nanobind::module_& m);
void bind_scan(nanobind::module_& m);

}  // namespace ssmquant
