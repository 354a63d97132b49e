// What the sources of the extension share: array types, the thread pool.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kernels/pointwise.hpp"
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

// The pool of the ops and of every engine that names no other number of threads.
ThreadPool& shared_pool();

void bind_pointwise(nanobind::module_& m);

}  // namespace ssmquant
