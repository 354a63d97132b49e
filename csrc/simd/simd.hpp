// `F32`, a vector of floats of the instruction set that the file is compiled for, and what all kernels do with it.
//
// Everything is in namespace ssmquant::<isa>, because each kernel source is compiled once for each instruction set. For the
// same reason kernel sources include no standard templates (std::vector, std::function): the linker would keep one copy
// of their instances, perhaps one with instructions that this processor lacks.
#pragma once

#include <cstdint>

#ifndef SSMQUANT_ISA
#error "kernel sources are compiled with -DSSMQUANT_ISA=<name>"
#endif

#if defined(__AVX512F__)
#include "simd/avx512.hpp"
#elif defined(__AVX2__)
#include "simd/avx2.hpp"
#elif defined(__ARM_NEON)
#include "simd/neon.hpp"
#else
#include "simd/generic.hpp"
#endif
