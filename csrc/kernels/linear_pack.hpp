// Packing of weights, and rows of an embedding; see linear.hpp.
#pragma once

#include <cstdint>

#include "kernels/linear.hpp"

namespace ssmquant::SSMQUANT_ISA {

int64_t packed_bytes(const LinearWeight& weight);
void pack_int8(const int8_t* codes, int64_t stride, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed);
void pack_int4(const uint8_t* codes, const float* scale, int64_t n, int64_t k, int64_t group, int64_t first, int64_t last,
               uint8_t* packed);
void pack_int4_progressive(const uint8_t* codes, const uint8_t* grid, int64_t n, int64_t k, int64_t group, int64_t first,
                           int64_t last, uint8_t* packed);
void pack_int4_asymmetric(const uint8_t* codes, const float* scale, const int8_t* zero_point, int64_t n, int64_t k, int64_t group,
                          int64_t first, int64_t last, uint8_t* packed);
void pack_halves(const uint16_t* values, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed);
void pack_singles(const float* values, WeightType type, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed);
void embed_packed(const LinearWeight& weight, Scale scale, const int64_t* ids, int64_t count, float* out);
void embed(const int8_t* codes, int64_t k, Scale scale, const int64_t* ids, int64_t count, float* out);
void embed_int4(const uint8_t* codes, const float* scale, int64_t k, int64_t group, const int64_t* ids, int64_t count,
                float* out);

}  // namespace ssmquant::SSMQUANT_ISA
