#include "runtime/probe.hpp"

#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

double probe_read(const Bytes& buffer, int threads, double seconds) {
  const uint8_t* data = buffer.data();
  const int64_t bytes = static_cast<int64_t>(buffer.size());
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  return read_bandwidth(pool, data, bytes, seconds);
}

double probe_int8(int threads, double seconds) {
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  return int8_peak(pool, seconds);
}

}  // namespace

void bind_probe(nb::module_& m) {
  m.def("probe_read", &probe_read, nb::arg("buffer"), nb::arg("threads"), nb::arg("seconds"),
        "Bytes a second at which threads read a buffer together, the fastest pass.");
  m.def("probe_int8", &probe_int8, nb::arg("threads"), nb::arg("seconds"),
        "Int8 operations a second of all threads, in registers, the fastest pass.");
}

}  // namespace ssmquant
